// Random adapters in PEFT's format for any model, written to disk.
#pragma once
#include <cstdint>
#include <string>

#include "ops/lora.h"

namespace lorry::bench {

// The rank of adapter `index`: 4 ... 64, all of them in use.
int32_t rank_of(int64_t index);

struct RandomAdapter {
  int32_t rank = 16;
  bool all_linears = true;  // q, k, v, o, the router and every expert matrix; false: q, k, v, o
};

// Writes `folder` with adapter_config.json and adapter_model.safetensors (bf16), values a function
// of `seed`. Returns the bytes of the tensors. Requires: the model names its experts one by one.
int64_t write_adapter(const std::string& folder, const SiteTable& sites, const RandomAdapter& what,
                      uint64_t seed);

// Writes an adapter that cannot be loaded, in one of several ways.
void write_bad_adapter(const std::string& folder, const SiteTable& sites, int64_t index);

}  // namespace lorry::bench
