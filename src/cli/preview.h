// What a model or an adapter would be once loaded, found out without loading the model's weights.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "adapters/adapter.h"
#include "base/thread_pool.h"
#include "engine/engine.h"
#include "engine/loaded_model.h"
#include "models/spec.h"
#include "ops/ops.h"

namespace lorry {

struct Preview {
  Spec spec;
  SiteTable sites;
  std::string digest;   // empty: synthetic
  int64_t tensors = 0;  // that the model takes from its files, each checked for name and shape
  int64_t file_bytes = 0;
  std::optional<MemoryPlan> memory;
  std::string does_not_fit;  // why there is no plan
  LoadedModel parts;         // threads, ops and source alone
  ModelWeights weights;      // of a packed model, where they are mapped; otherwise empty
};

// Throws Error where the model would not load.
Preview preview_model(const EngineOptions& options);

// Loads the adapter for that model. Throws Error where it would not load.
std::unique_ptr<Adapter> preview_adapter(const Preview& model, const std::string& folder,
                                         int32_t max_rank);

}  // namespace lorry
