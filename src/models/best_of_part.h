// The best token of a row of logits whose vocabulary several ranks share.
#pragma once
#include <cmath>
#include <cstdint>
#include <span>

namespace lorry {

// The largest logit of a rank's part and its token; NaN where a logit is NaN or +inf, -inf where
// none is above that.
struct BestOfPart {
  float logit = 0;
  int32_t token = -1;
};

// place: as arg_max (ops/scores.h) finds it in `logits`, the part that begins with token `first`.
inline BestOfPart best_of_part(std::span<const float> logits, int32_t place, int64_t first) {
  if (place >= 0) {
    return {logits[static_cast<size_t>(place)], static_cast<int32_t>(first + place)};
  }
  for (const float x : logits) {
    if (!(x < INFINITY)) return {NAN, -1};
  }
  return {-INFINITY, -1};
}

// Of the ranks' parts in the order of their tokens: the token as arg_max finds it in all of them.
inline int32_t best_of(std::span<const BestOfPart> parts) {
  BestOfPart best{-INFINITY, -1};
  for (const BestOfPart& p : parts) {
    if (std::isnan(p.logit)) return -1;
    if (p.logit > best.logit) best = p;
  }
  return best.token;
}

}  // namespace lorry
