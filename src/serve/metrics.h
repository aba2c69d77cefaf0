// Metrics: counts and timings of requests, and the text that /metrics answers. Names are those of
// LoRAX (lorax_*) and vLLM (vllm:*), which dashboards, autoscalers and gateways read; a name whose
// true value is not known here is not exported. Any thread.
#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "serve/backend.h"

namespace lorry {

struct Results;
class Tracing;

class Metrics {
 public:
  // `model`: label of the vllm:* metrics. max_adapters: that may be in use at once.
  Metrics(const std::string& model, int64_t max_adapters);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  using Duration = std::chrono::steady_clock::duration;

  void received();                     // a generation request
  void failed(std::string_view type);  // errors.h: type_of()
  void succeeded(const Results& results);
  void validated(Duration time);
  void first_token(Duration since_received);
  void next_token(Duration since_last);
  void unknown_field();
  // Tokens that running requests may grow to; negative when they end.
  void reserve(int64_t tokens);

  // A request of the adapter waits, got its first token, has ended. Empty: none.
  void adapter_waits(const std::string& name);
  void adapter_runs(const std::string& name);
  void adapter_done(const std::string& name, bool had_run);

  // Prometheus' text format.
  std::string expose(const EngineStats& stats, const Tracing* tracing) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorry
