// BatchBuilder: turns a step's plan into the arrays of a forward pass, and remembers which rows are
// whose. Sequences are ordered by adapter, so that rows of one adapter lie together; a row's result
// does not depend on the order.
// Engine thread only; the arrays are reused from step to step.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/scheduler.h"
#include "lorry/forward.h"
#include "ops/lora.h"

namespace lorry {

// One chunk of the batch, with its place in it.
struct BatchEntry {
  const Chunk* chunk = nullptr;
  int32_t adapter = -1;         // index into views(), -1: none
  int64_t first_logit_row = 0;  // into ForwardOutput::logits; chunk->n_logits rows
};

class BatchBuilder {
 public:
  explicit BatchBuilder(const ForwardLimits& limits);

  void clear();
  // `adapter`: the sequence's loaded adapter; without pairs: none.
  void add(const Chunk& chunk, const AdapterView& adapter);
  // Requires: at least one chunk.
  const ForwardInput& build();

  std::span<const BatchEntry> entries() const { return entries_; }
  std::span<const AdapterView> views() const { return views_; }

 private:
  void append(BatchEntry& entry);
  void append_tables();

  std::vector<BatchEntry> entries_;
  std::vector<AdapterView> views_;
  std::vector<int32_t> ids_, positions_, rope_lens_, cu_seqlens_, kv_lens_, tables_, slots_,
      adapters_, logit_rows_;
  ForwardInput input_;
};

}  // namespace lorry
