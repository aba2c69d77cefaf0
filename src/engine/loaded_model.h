// LoadedModel: everything that one forward pass needs, put together: threads, backend, weights, KV
// cache. Shared by the engine, the public Model and the benchmark.
#pragma once
#include <memory>
#include <string>

#include "adapters/adapter.h"
#include "base/log.h"
#include "base/thread_pool.h"
#include "engine/engine.h"
#include "kv/kv_cache.h"
#include "models/architecture.h"
#include "models/causal_lm.h"
#include "models/source.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ops.h"
#include "parallel/comm.h"

namespace lorry {

struct LoadedModel {
  Isa isa = Isa::scalar;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Comm> comm;
  const Architecture* architecture = nullptr;
  SiteTable sites;
  std::unique_ptr<TensorSource> source;  // of the weights, which may be mapped in it
  std::unique_ptr<CausalLM> lm;
  std::unique_ptr<KvCache> kv;
  std::vector<KvLayer> layers;  // of kv
  MemoryPlan memory;
  ModelInfo info;
};

// How the weights of `model` will be stored when `wanted` was asked for. Throws
// Error(invalid_argument) where what is quantised already cannot be that.
WeightFormats formats_of(const std::string& model, const Architecture& architecture, Spec spec,
                         TensorSource& source, const WeightFormats& wanted);

// Throws Error. Says in the log what was read and how long it took.
std::unique_ptr<LoadedModel> load_model(const EngineOptions& options, Log& log);

// The model as its adapters see it. Requires: `model` outlives what is loaded with it.
AdapterTarget adapter_target(const LoadedModel& model);

}  // namespace lorry
