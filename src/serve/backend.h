// Backend: what serving asks of an engine. EngineBackend (engine_backend.h) is the real one; the
// tests script another, to have answers, failures and delays at will without a model.
// Any thread may call any member.
#pragma once
#include <functional>
#include <string>

#include "adapters/snapshot.h"
#include "engine/engine.h"
#include "engine/request.h"
#include "text/tokenizer.h"

namespace lorry {

class Backend {
 public:
  virtual ~Backend() = default;

  // As Engine's.
  virtual RequestId submit(Request request) = 0;
  virtual void cancel(RequestId id) = 0;
  virtual const ModelInfo& info() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
  virtual EngineStats stats() const = 0;
  virtual AdapterSnapshot adapters() const = 0;  // may wait for a step: not on an I/O thread
  virtual void load_adapter(AdapterLoad load, std::function<void(const Error*)> done) = 0;
  virtual void unload_adapter(const std::string& name) = 0;  // may wait for a step
  virtual double stuck_seconds() const = 0;
};

}  // namespace lorry
