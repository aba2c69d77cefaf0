// BatchBuilder: turns a step's plan into the arrays of a forward pass, and remembers which rows are
// whose. A chunk is one sequence of the pass, or two when it crosses Sequence::adapter_from: the
// rows before it without the adapter, the others with it, over the same block table. Sequences are
// ordered by adapter, so that rows of one adapter lie together; a row's result does not depend on
// the order.
// Engine thread only; the arrays are reused from step to step.
#pragma once
#include <array>
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
  int32_t adapter = -1;         // of rows that use one: index into views(); -1: none does
  int64_t first_logit_row = 0;  // into ForwardOutput::logits; chunk->n_logits rows
};

class BatchBuilder {
 public:
  // limits: of the forward pass, as forward_limits() gives them.
  explicit BatchBuilder(const ForwardLimits& limits);

  void clear();
  // `adapter`: the sequence's loaded adapter, for rows from adapter_from on; without pairs: none.
  void add(const Chunk& chunk, const AdapterView& adapter);
  // Requires: at least one chunk.
  const ForwardInput& build(Want want = Want::logits);

  std::span<const BatchEntry> entries() const { return entries_; }
  std::span<const AdapterView> views() const { return views_; }

 private:
  // A chunk's rows at [first, middle) have no adapter, those at [middle, end) have it.
  static int32_t middle_of(const BatchEntry& entry);
  // A sequence of the pass: positions [first, end). Returns its first row.
  int32_t append(const Sequence& seq, int32_t first, int32_t end, int32_t adapter);
  void append_logit_rows();
  void append_tables();

  std::vector<BatchEntry> entries_;
  std::vector<AdapterView> views_;
  std::vector<std::array<int32_t, 2>> rows_;  // of an entry: that of `first`, that of `middle`
  std::vector<const Sequence*> sequences_;    // of the pass
  std::vector<int32_t> ids_, positions_, rope_lens_, cu_seqlens_, kv_lens_, tables_, slots_,
      adapters_, logit_rows_;
  ForwardInput input_;
};

}  // namespace lorry
