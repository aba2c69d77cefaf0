// Placement: every part of a model is on some rank, once (KV heads apart), whatever the counts.
#include "parallel/placement.h"

#include <gtest/gtest.h>

#include "lorry/error.h"

namespace lorry {
namespace {

// The ranges lie one behind the other and cover [0, total).
void expect_cover(const std::vector<Range>& parts, int64_t total) {
  int64_t end = 0;
  for (const Range& r : parts) {
    EXPECT_EQ(r.first, end);
    EXPECT_GE(r.count, 0);
    end = r.first + r.count;
  }
  EXPECT_EQ(end, total);
}

std::vector<Range> all_of(const std::vector<Placement>& places, Range Placement::* part) {
  std::vector<Range> all;
  for (const Placement& p : places) all.push_back(p.*part);
  return all;
}

void check(const ModelShape& s, int ranks, bool expert_parallel) {
  SCOPED_TRACE(testing::Message() << s.heads << "/" << s.kv_heads << " heads on " << ranks);
  const auto places = place(s, ranks, expert_parallel);
  ASSERT_EQ(places.size(), static_cast<size_t>(ranks));
  const int64_t group = s.heads / s.kv_heads;
  std::vector<Range> heads = all_of(places, &Placement::heads);
  std::erase_if(heads, [](const Range& r) { return r.count == 0; });
  expect_cover(heads, s.heads);
  expect_cover(all_of(places, &Placement::vocab), s.vocab);
  if (expert_parallel) {
    expect_cover(all_of(places, &Placement::experts), s.experts);
  } else {
    expect_cover(all_of(places, &Placement::ffn), s.ffn);
  }
  for (const Placement& p : places) {
    EXPECT_GT(p.vocab.count, 0);
    EXPECT_GT(p.ffn.count, 0);
    EXPECT_GT(p.experts.count, 0);
    EXPECT_EQ(p.heads.count == 0, p.kv_heads.count == 0);
    if (p.heads.count == 0) continue;
    // Query head h of the rank reads its KV head h / (heads / KV heads).
    ASSERT_EQ(p.heads.count % p.kv_heads.count, 0);
    const int64_t own_group = p.heads.count / p.kv_heads.count;
    for (int64_t h = 0; h < p.heads.count; ++h) {
      EXPECT_EQ((p.heads.first + h) / group, p.kv_heads.first + h / own_group);
    }
  }
}

TEST(Placement, every_count_of_heads_and_ranks) {
  for (int64_t kv = 1; kv <= 9; ++kv) {
    for (int64_t group = 1; group <= 7; ++group) {
      for (int ranks = 1; ranks <= 17; ++ranks) {
        const ModelShape s{kv * group, kv, 17 + kv * 13, 17, 300 + group};
        check(s, ranks, false);
        check(s, ranks, true);
      }
    }
  }
}

TEST(Placement, the_real_models_on_what_people_have) {
  for (const int ranks : {1, 2, 3, 4, 5, 6, 8, 12, 16, 32}) {
    check({32, 8, 14336, 8, 32000}, ranks, false);    // Mixtral 8x7B
    check({48, 8, 16384, 8, 32768}, ranks, false);    // Mixtral 8x22B
    check({48, 8, 10752, 16, 100352}, ranks, false);  // DBRX
  }
  const auto two = place({32, 8, 14336, 8, 32000}, 2, false);
  EXPECT_EQ(two[1].kv_heads, (Range{4, 4}));
  EXPECT_EQ(two[1].heads, (Range{16, 16}));
  EXPECT_EQ(two[1].ffn, (Range{7168, 7168}));
  EXPECT_EQ(two[1].vocab, (Range{16000, 16000}));
}

TEST(Placement, kv_heads_are_replicated_where_there_are_more_ranks) {
  const auto places = place({8, 2, 64, 4, 64}, 4, false);
  for (int r = 0; r < 4; ++r) {
    EXPECT_EQ(places[static_cast<size_t>(r)].kv_heads, (Range{r / 2, 1}));
    EXPECT_EQ(places[static_cast<size_t>(r)].heads, (Range{2 * r, 2}));
  }
}

TEST(Placement, widths_that_share_a_scale_stay_together) {
  for (const Placement& p : place({32, 8, 14336, 8, 32000, 128}, 3, false)) {
    EXPECT_EQ(p.ffn.first % 128, 0);
  }
}

std::string refusal(const ModelShape& s, int ranks, bool expert_parallel) {
  try {
    place(s, ranks, expert_parallel);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Placement, names_what_there_is_too_little_of) {
  EXPECT_EQ(refusal({4, 2, 64, 4, 64}, 5, true),
            "the model has 4 experts, too few for 5 ranks: use at most 4 ranks");
  EXPECT_EQ(refusal({4, 2, 7, 4, 64}, 8, false),
            "the model has 7 columns in an expert, too few for 8 ranks: use at most 7 ranks");
  EXPECT_EQ(refusal({4, 2, 64, 4, 3}, 4, false),
            "the model has 3 entries in its vocabulary, too few for 4 ranks: use at most 3 ranks");
}

}  // namespace
}  // namespace lorry
