// Choosing the tokens of a step: a sequence brings the row of its last certain token and one for
// each draft. A draft is kept when it is what the request's own sampling gives at its place, after
// the same tokens and with the same random number as without drafts; the first that is not gives
// way to that token. So text, log-probabilities and finish are the same, bit by bit, without
// drafts. A constraint is asked and told token by token, drafts and others alike.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/sampler.h"
#include "engine/sequence.h"
#include "lorry/error.h"
#include "lorry/tensor.h"
#include "text/constraint.h"

namespace lorry {

// What a sequence got out of a step.
struct Verified {
  std::vector<SampledToken> tokens;  // the drafts that were kept and the token behind them
  int32_t n_kept = 0;                // drafts
  // The row behind the kept drafts holds NaN or infinity; then no token follows them.
  bool broken = false;
  bool dead_end = false;       // the constraint allows no token behind them
  std::optional<Error> error;  // the constraint's own; then no token follows either
  bool ended() const { return broken || dead_end || error.has_value(); }
};

// Of the last certain token and of the drafts, as ForwardOutput has them.
struct ChosenRows {
  Tensor logits;                  // [1 + n_draft, V] f32; not looked at where the best are taken
  std::span<const int32_t> best;  // [1 + n_draft]
};

// One thread per sampler; sequences are independent. `constraint`: null where anything is allowed,
// else in the state after the certain tokens; afterwards, after those that the sequence got.
Verified verify(Sampler& sampler, const SamplingParams& params, const Sequence& seq,
                const ChosenRows& rows, Constraint* constraint);

}  // namespace lorry
