// LoadedModel: everything that one forward pass needs, put together: threads, backend, weights, KV
// cache. Shared by the engine, the public Model and the benchmark.
#pragma once
#include <memory>
#include <string>

#include "base/log.h"
#include "base/thread_pool.h"
#include "engine/engine.h"
#include "kv/kv_cache.h"
#include "models/architecture.h"
#include "models/causal_lm.h"
#include "ops/ops.h"
#include "parallel/comm.h"
#include "weights/checkpoint.h"

namespace lorry {

struct LoadedModel {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Ops> ops;
  std::unique_ptr<Comm> comm;
  const Architecture* architecture = nullptr;
  SiteTable sites;
  std::unique_ptr<CausalLM> lm;
  std::unique_ptr<KvCache> kv;
  std::vector<KvLayer> layers;  // of kv
  MemoryPlan memory;
  ModelInfo info;
  Tensor head_as_stored;  // lm_head of the checkpoint, for comparing with copies in adapters
  std::unique_ptr<Checkpoint> checkpoint;  // null: synthetic
};

// Throws Error. Says in the log what was read and how long it took.
std::unique_ptr<LoadedModel> load_model(const EngineOptions& options, Log& log);

// Whether a weight that an adapter carries along equals the base model's (adapters/adapter.h).
bool same_as_base(const LoadedModel& model, const std::string& module, const Tensor& copy);

}  // namespace lorry
