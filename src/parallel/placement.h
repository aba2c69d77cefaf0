// Placement: which part of a model each rank has. Attention is split by KV heads, each with the
// query heads that read it; where there are more ranks than KV heads, several ranks keep the same
// KV head for different query heads; where there are more ranks than query heads, some have none.
// Experts are split by width, or whole (expert parallel). Embedding and output layer are split by
// vocabulary. Router and norms are on every rank. Pure arithmetic: any rank knows all placements.
#pragma once
#include <cstdint>
#include <vector>

#include "ops/lora.h"

namespace lorry {

// What a placement depends on.
struct ModelShape {
  int64_t heads = 0, kv_heads = 0, ffn = 0, experts = 0, vocab = 0;
  int64_t ffn_unit = 1;  // widths that stay together: of a quantised model what shares a scale
};

struct Placement {
  int rank = 0, ranks = 1;
  Range heads, kv_heads;  // heads.count is a multiple of kv_heads.count, or both are 0
  Range ffn, experts, vocab;
};

// Of every rank. Throws Error(invalid_argument) naming the constraint where the model has too few
// parts for so many ranks.
std::vector<Placement> place(const ModelShape& shape, int ranks, bool expert_parallel);

// The part of the vocabulary that a rank has.
Range vocab_of(const ModelShape& shape, int rank, int ranks);

// Part `index` of `n` of [0, total), in units, the larger ones first.
Range part_of(int64_t total, int index, int64_t n, int64_t unit = 1);

}  // namespace lorry
