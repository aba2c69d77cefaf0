#include "engine/verify.h"

#include <algorithm>
#include <span>
#include <utility>

namespace lorry {

namespace {

// False: *got says why no token can be chosen.
bool ask_mask(Constraint& constraint, std::vector<uint32_t>& allowed, Verified* got) {
  try {
    constraint.mask(allowed);
  } catch (const Error& e) {
    got->error = e;
    return false;
  }
  got->dead_end = std::ranges::all_of(allowed, [](uint32_t word) { return word == 0; });
  return !got->dead_end;
}

bool commit(Constraint& constraint, int32_t id, Verified* got) {
  if (constraint.finished()) return true;  // the EOS token, behind which nothing is committed
  try {
    constraint.commit(id);
  } catch (const Error& e) {
    got->error = e;
    return false;
  }
  return true;
}

std::optional<SampledToken> known(int32_t best) {
  if (best < 0) return std::nullopt;
  return SampledToken{best, 0, {}};
}

}  // namespace

Verified verify(Sampler& sampler, const SamplingParams& params, const Sequence& seq,
                const ChosenRows& rows, Constraint* constraint) {
  Verified out;
  const std::span<const int32_t> tokens = seq.tokens;
  const auto n_certain = static_cast<size_t>(seq.n_certain());
  const bool take_best = constraint == nullptr && params.takes_best();
  const auto vocab = static_cast<size_t>(take_best ? 0 : rows.logits.cols());
  std::vector<uint32_t> allowed(constraint == nullptr ? 0 : (vocab + 31) / 32);
  for (int32_t row = 0;; ++row) {
    const size_t position = n_certain + static_cast<size_t>(row);
    if (constraint != nullptr && !ask_mask(*constraint, allowed, &out)) return out;
    std::optional<SampledToken> token =
        take_best
            ? known(rows.best[static_cast<size_t>(row)])
            : sampler.sample({rows.logits.row<const float>(row), vocab}, params,
                             {tokens.first(position), static_cast<size_t>(seq.n_prompt), allowed},
                             position);
    if (!token) {
      out.broken = true;
      return out;
    }
    const int32_t id = token->id;
    out.tokens.push_back(*std::move(token));
    if (constraint != nullptr && !commit(*constraint, id, &out)) return out;
    if (position == tokens.size() || id != tokens[position]) return out;
    ++out.n_kept;
  }
}

}  // namespace lorry
