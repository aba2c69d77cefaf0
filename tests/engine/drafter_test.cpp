// Guesses from the past of a sequence, and how many of them are made.
#include "engine/drafter.h"

#include <algorithm>
#include <random>

#include <gtest/gtest.h>

namespace lorry {
namespace {

using Tokens = std::vector<int32_t>;

// What is proposed after `tokens`, whose pace expects guesses to be kept.
Tokens proposal(NgramDrafter& drafter, Tokens tokens, int32_t limit) {
  const size_t before = tokens.size();
  const int32_t n = drafter.propose(tokens, limit);
  EXPECT_EQ(tokens.size(), before + static_cast<size_t>(n));
  return {tokens.begin() + static_cast<std::ptrdiff_t>(before), tokens.end()};
}

Tokens proposal(const Tokens& tokens, int32_t limit) {
  NgramDrafter drafter(1000);
  return proposal(drafter, tokens, limit);
}

TEST(Drafter, proposes_what_followed_the_last_earlier_place) {
  EXPECT_EQ(proposal({1, 2, 3, 4, 5, 6, 1, 2, 3, 4}, 1), (Tokens{5}));
  EXPECT_EQ(proposal({1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 9, 1, 2, 3, 4}, 2), (Tokens{6, 9}));
}

TEST(Drafter, prefers_the_longer_match) {
  EXPECT_EQ(proposal({1, 2, 3, 4, 7, 9, 3, 4, 8, 1, 2, 3, 4}, 1), (Tokens{7}));
  EXPECT_EQ(proposal({1, 2, 3, 7, 9, 3, 8, 2, 3}, 1), (Tokens{7}));
}

TEST(Drafter, proposes_nothing_for_what_was_never_there) {
  EXPECT_TRUE(proposal({1}, 5).empty());
  EXPECT_TRUE(proposal({1, 2, 3, 4, 5}, 5).empty());
  EXPECT_TRUE(proposal({1, 2, 1, 2, 1, 2}, 0).empty());
}

TEST(Drafter, goes_on_with_a_text_that_repeats) {
  NgramDrafter drafter(1000);
  const Tokens tokens = {1, 2, 3, 1, 2, 3, 1, 2, 3};
  EXPECT_EQ(proposal(drafter, tokens, 1), (Tokens{1}));
  for (int i = 0; i < 40; ++i) drafter.learn(1, 1);
  EXPECT_EQ(proposal(drafter, tokens, 7), (Tokens{1, 2, 3, 1, 2, 3, 1}));
}

// Every proposal is the continuation of an earlier place of the newest token at least.
TEST(Drafter, random_sequences_in_little_memory) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    const int32_t most = 1 + static_cast<int32_t>(random() % 400);
    NgramDrafter drafter(round % 2 == 0 ? most : 4);  // too few slots: places are forgotten
    Tokens tokens;
    int32_t n_guessed = 0;
    while (static_cast<int32_t>(tokens.size()) < most) {
      for (auto n = 1 + random() % 3; n > 0; --n) {
        tokens.push_back(static_cast<int32_t>(random() % 4));
      }
      const Tokens got = proposal(drafter, tokens, 3);
      if (got.empty()) continue;
      ++n_guessed;
      bool found = false;
      Tokens all = tokens;
      all.insert(all.end(), got.begin(), got.end());
      for (size_t p = 1; p < tokens.size() && !found; ++p) {
        found = tokens[p - 1] == tokens.back() &&
                std::equal(got.begin(), got.end(), all.begin() + static_cast<std::ptrdiff_t>(p));
      }
      EXPECT_TRUE(found);
      const auto kept = static_cast<int32_t>(random() % (got.size() + 1));
      drafter.learn(static_cast<int32_t>(got.size()), kept);
    }
    if (most > 100 && round % 2 == 0) {
      EXPECT_GT(n_guessed, 0);
    }
  }
}

TEST(DraftPace, more_guesses_while_they_are_kept) {
  DraftPace pace(0.5F);
  int32_t last = pace.length(8);
  EXPECT_GE(last, 1);
  for (int i = 0; i < 30; ++i) {
    pace.learn(last, last);
    const int32_t n = pace.length(8);
    EXPECT_GE(n, last);
    last = n;
  }
  EXPECT_EQ(last, 8);
  EXPECT_EQ(pace.length(3), 3);
  EXPECT_EQ(pace.length(0), 0);
}

TEST(DraftPace, hopeless_guesses_are_probed_now_and_then) {
  DraftPace pace(0.9F);
  for (int i = 0; i < 50; ++i) pace.learn(4, 0);
  int32_t n = 0;
  for (int i = 0; i < 160; ++i) n += pace.length(8);
  EXPECT_EQ(n, 10);
}

TEST(DraftPace, guesses_behind_a_wrong_one_say_nothing) {
  DraftPace a(0.5F);
  DraftPace b(0.5F);
  for (int i = 0; i < 5; ++i) {
    a.learn(2, 1);
    b.learn(9, 1);
  }
  for (int i = 0; i < 40; ++i) EXPECT_EQ(a.length(9), b.length(9));
}

}  // namespace
}  // namespace lorry
