// What adapters are loaded for: a model as they see it, and the limits of one of them. Plain data.
#pragma once
#include <cstdint>
#include <functional>

#include "ops/lora.h"
#include "ops/ops.h"

namespace lorry {

struct AdapterLimits {
  int64_t max_bytes = int64_t{4} << 30;  // of adapter_model.safetensors, and of the packed form
  int32_t max_rank = 512;
  int32_t max_medusa_heads = 0;  // 0: adapters with Medusa heads are refused
};

// y [n, in] f32 <- rows [first, first + n) of the base matrix [out, in] of a site, as the backend
// computes with them; of the embedding rows of [V, D]; a norm is one row [D]. Safe to call from any
// thread.
using BaseRows = std::function<void(Tensor y, const Site& site, int64_t first)>;

// A model as adapters see it. What it points to outlives every folder and registry made with it.
struct AdapterTarget {
  const SiteTable* sites = nullptr;
  const Ops* ops = nullptr;  // only const calls are used
  BaseRows base_rows = {};   // empty only where no adapter has DoRA or a whole weight
  // The ranks of the model: each loads the whole adapter and packs its own part. Images lie at the
  // same places on all of them, so each takes the room of the largest.
  int rank = 0, ranks = 1;
  std::function<SiteShare(const Site& site, int rank)> share = {};  // empty only with one rank
};

}  // namespace lorry
