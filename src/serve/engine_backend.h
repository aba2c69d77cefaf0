// EngineBackend: a Backend that is an Engine.
#pragma once
#include <utility>

#include "serve/backend.h"

namespace lorry {

class EngineBackend final : public Backend {
 public:
  // The engine must outlive it. Throws Error(unsupported) when the model has no tokenizer.
  explicit EngineBackend(Engine& engine);

  RequestId submit(Request request) override { return engine_.submit(std::move(request)); }
  void cancel(RequestId id) override { engine_.cancel(id); }
  const ModelInfo& info() const override { return engine_.info(); }
  const Tokenizer& tokenizer() const override { return *engine_.tokenizer(); }
  EngineStats stats() const override { return engine_.stats(); }
  AdapterSnapshot adapters() const override { return engine_.adapters(); }
  void load_adapter(AdapterLoad load, std::function<void(const Error*)> done) override {
    engine_.load_adapter(std::move(load), std::move(done));
  }
  void unload_adapter(const std::string& name) override { engine_.unload_adapter(name); }
  double stuck_seconds() const override { return engine_.stuck_seconds(); }

 private:
  Engine& engine_;
};

}  // namespace lorry
