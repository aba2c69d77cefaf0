#include "engine/verify.h"

#include <span>
#include <utility>

namespace lorry {

Verified verify(Sampler& sampler, const SamplingParams& params, const Sequence& seq,
                Tensor logits) {
  Verified out;
  const std::span<const int32_t> tokens = seq.tokens;
  const auto n_certain = static_cast<size_t>(seq.n_certain());
  for (int32_t row = 0;; ++row) {
    const size_t position = n_certain + static_cast<size_t>(row);
    std::optional<SampledToken> token =
        sampler.sample({logits.row<const float>(row), static_cast<size_t>(logits.cols())}, params,
                       {tokens.first(position), static_cast<size_t>(seq.n_prompt)}, position);
    if (!token) {
      out.broken = true;
      return out;
    }
    out.tokens.push_back(*std::move(token));
    if (position == tokens.size() || out.tokens.back().id != tokens[position]) return out;
    ++out.n_kept;
  }
}

}  // namespace lorry
