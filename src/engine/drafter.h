// Drafts: guesses at the next tokens of a sequence, which the next step verifies (verify.h). They
// change when a token comes and whether it is marked as skipped, never which token it is.
// Engine thread only.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "lorry/tensor.h"

namespace lorry {

// How many guesses of one kind are worth their rows. In a mixture of experts the first row more
// reads nearly as many experts as the one it joins, further ones ever fewer: so either several
// guesses are made or none, by how likely the last ones were to be kept. Where none is worth it,
// one is made each 16th time, to notice a change.
class DraftPace {
 public:
  // chance: that a guess is kept, before anything is known.
  explicit DraftPace(float chance) : chance_(chance) {}

  // 0 ... limit.
  int32_t length(int32_t limit);
  // Of `verified` guesses the first `kept` were right. Those after the first wrong one say nothing.
  void learn(int32_t verified, int32_t kept);

 private:
  float chance_;
  int32_t n_declined_ = 0;  // times in a row
};

// Before anything is known of the guesses of an adapter's Medusa heads.
inline constexpr float kMedusaChance = 0.6F;

// Rows [first, first + n) of what Medusa heads gave, [R, heads, V] (lorry/forward.h).
Tensor rows_of_heads(Tensor speculative, int64_t first, int64_t n);
// The tokens that the first n_heads heads of a row think most likely: guesses at those behind the
// one that the row's own logits give.
std::vector<int32_t> best_tokens(const Tensor& speculative, int64_t row, int32_t n_heads);

// Guesses from the sequence itself: finds the last earlier place of its newest tokens (8, else 5, 3
// or 2 of them) and proposes what followed there. Each token is looked at once; the memory is 256
// KiB at most, so in a long sequence the oldest places are forgotten.
class NgramDrafter {
 public:
  // Sizes its memory for a sequence of max_tokens.
  explicit NgramDrafter(int32_t max_tokens);

  // Appends at most `limit` guesses to `tokens`; returns how many. Requires: all of `tokens` are
  // certain, and those of the last call are its beginning.
  int32_t propose(std::vector<int32_t>& tokens, int32_t limit);
  // How the guesses of the last proposal did, or those of them that were verified.
  void learn(int32_t verified, int32_t kept);

  static constexpr std::array<size_t, 4> kLengths = {2, 3, 5, 8};

 private:
  // f(i, slot of the kLengths[i] tokens before `end`) for those that there are.
  template <class F>
  void for_lengths(std::span<const int32_t> tokens, size_t end, F&& f);
  void index(std::span<const int32_t> tokens);
  // The position behind the last earlier place of the longest end of `tokens` that has one; its
  // length becomes match_. 0 when none has.
  size_t find(std::span<const int32_t> tokens);

  std::vector<int32_t> slots_;  // by hash: the position behind the newest such n-gram; 0: none
  int32_t shift_ = 0;           // of a hash, to an index of slots_
  size_t n_indexed_ = 0;        // n-grams that end before or at this position are in slots_
  size_t match_ = 0;            // index into kLengths
  std::array<DraftPace, kLengths.size()> pace_;  // by match_
};

}  // namespace lorry
