// Choosing the tokens of a step: a sequence brings the row of its last certain token and one for
// each draft. A draft is kept when it is what the request's own sampling gives at its place, after
// the same tokens and with the same random number as without drafts; the first that is not gives
// way to that token. So text, log-probabilities and finish are the same, bit by bit, without
// drafts.
#pragma once
#include <cstdint>
#include <vector>

#include "engine/sampler.h"
#include "engine/sequence.h"
#include "lorry/tensor.h"

namespace lorry {

// What a sequence got out of a step.
struct Verified {
  std::vector<SampledToken> tokens;  // the drafts that were kept and the token behind them
  int32_t n_kept = 0;                // drafts
  // The row behind the kept drafts holds NaN or infinity; then no token follows them.
  bool broken = false;
};

// logits [1 + n_draft, V] f32: rows of the last certain token and of the drafts. One thread per
// sampler; sequences are independent.
Verified verify(Sampler& sampler, const SamplingParams& params, const Sequence& seq, Tensor logits);

}  // namespace lorry
