// What fits into the memory of a server, and the flags that change it: from the plan that start-up
// makes, without the weights.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/engine.h"
#include "ops/lora.h"
#include "ops/ops.h"

namespace lorry {

struct FitReport {
  struct Adapters {
    int32_t rank = 0;
    bool all_linears = false;  // else q, k, v and o alone
    int64_t bytes = 0;         // of one
    int64_t fit = 0;           // at once, in the memory for adapters
  };
  MemoryPlan memory;
  Topology nodes;                  // that threads and memory are bound to, if there are several
  int64_t longest = 0;             // tokens of one request, prompt and answer
  int64_t longest_at_once = 0;     // requests of that length that the KV cache holds
  int32_t sequences = 0;           // of one step
  int32_t requests = 0;            // in work or waiting
  std::vector<Adapters> adapters;  // of a model that is on one rank

  // Lines without the last newline.
  std::string to_text() const;
  json::object to_json() const;
};

// Bytes that a LoRA of this rank takes in memory.
int64_t lora_bytes(const SiteTable& sites, const Ops& ops, int32_t rank, bool all_linears);

// `ops` computes in options.dtype.
FitReport fit_report(const EngineOptions& options, const Spec& spec, const SiteTable& sites,
                     const Ops& ops, const MemoryPlan& plan);

json::object memory_json(const MemoryPlan& plan);

}  // namespace lorry
