// ExtentArena over a model of the memory: one owner's mark per granule, moved as the arena says.
#include "adapters/arena.h"

#include <random>

#include <gtest/gtest.h>

namespace lorry {
namespace {

constexpr int64_t kG = ExtentArena::kGranule;
constexpr int64_t kAnySize = int64_t{1} << 60;

TEST(ExtentArena, takes_whole_granules_from_the_smallest_hole_that_fits) {
  ExtentArena arena(10 * kG + 1);
  EXPECT_EQ(arena.size(), 10 * kG);
  const auto a = arena.take(3 * kG, 0);
  const auto b = arena.take(1, 1);
  const auto c = arena.take(2 * kG, 2);
  const auto d = arena.take(kG, 3);
  EXPECT_EQ(arena.free(), 3 * kG);
  arena.give_back(*a);
  arena.give_back(*c);
  const auto e = arena.take(kG + 1, 4);
  EXPECT_EQ(arena.offset(*e), 4 * kG) << "the hole of two, not those of three";
  EXPECT_EQ(arena.largest_hole(), 3 * kG);
  for (const auto extent : {b, d, e}) arena.give_back(*extent);
  EXPECT_EQ(arena.largest_hole(), 10 * kG) << "holes join";
  arena.check_integrity();
}

TEST(ExtentArena, holds_nothing_when_there_is_no_memory) {
  ExtentArena arena(kG - 1);
  EXPECT_EQ(arena.size(), 0);
  EXPECT_FALSE(arena.take(1, 0));
  EXPECT_TRUE(arena.plan_moves(1, kAnySize).empty());
  arena.check_integrity();
}

// Takes extents of `sizes` granules one after the other; owner = index.
std::vector<int32_t> fill(ExtentArena& arena, const std::vector<int64_t>& sizes) {
  std::vector<int32_t> extents;
  for (size_t i = 0; i < sizes.size(); ++i) {
    extents.push_back(*arena.take(sizes[i] * kG, static_cast<int32_t>(i)));
    arena.settle(extents.back());
  }
  return extents;
}

TEST(ExtentArena, moves_the_fewest_bytes_that_make_the_hole) {
  ExtentArena arena(12 * kG);
  const auto x = fill(arena, {1, 3, 1, 1, 1, 2, 1, 1, 1});
  for (const size_t hole : {0, 2, 4, 6, 8}) arena.give_back(x[hole]);
  // .BBB.d.FF.h. is what is left: d lies between two holes and is the cheapest to move.
  const auto moves = arena.plan_moves(2 * kG, kAnySize);
  ASSERT_EQ(moves.size(), 1U);
  EXPECT_EQ(moves[0].owner, 3);
  EXPECT_EQ(moves[0].from, 5 * kG);
  EXPECT_EQ(moves[0].to, 4 * kG);
  arena.moved(moves[0]);
  EXPECT_EQ(arena.offset(x[3]), 4 * kG);
  EXPECT_EQ(arena.largest_hole(), 2 * kG);
  arena.check_integrity();
  EXPECT_TRUE(arena.plan_moves(2 * kG, kAnySize).empty()) << "there is such a hole";
  EXPECT_EQ(arena.plan_moves(5 * kG, kAnySize).size(), 4U);
  EXPECT_TRUE(arena.plan_moves(6 * kG, kAnySize).empty()) << "more than is free";
}

TEST(ExtentArena, fixed_and_large_extents_stay) {
  ExtentArena arena(9 * kG);
  const auto x = fill(arena, {1, 1, 1, 3, 1, 1, 1});
  for (const size_t hole : {0, 2, 4, 6}) arena.give_back(x[hole]);  // .b.DDD.f.
  arena.fix(x[1]);
  EXPECT_EQ(arena.plan_moves(2 * kG, 2 * kG).at(0).owner, 5);
  arena.fix(x[5]);
  EXPECT_TRUE(arena.plan_moves(2 * kG, 2 * kG).empty());
  EXPECT_EQ(arena.plan_moves(2 * kG, 3 * kG).at(0).owner, 3);
  arena.settle(x[1]);
  EXPECT_EQ(arena.plan_moves(2 * kG, 3 * kG).at(0).owner, 1);
  EXPECT_EQ(arena.plan_moves(3 * kG, 3 * kG).size(), 2U) << "no more than up to f";
  EXPECT_TRUE(arena.plan_moves(4 * kG, 3 * kG).empty()) << "f stays in between";
}

// The memory as a row of owners' marks; what an extent holds must survive its moves.
class Simulation {
 public:
  Simulation(uint32_t seed, int64_t granules, int64_t largest)
      : random_(seed),
        arena_(granules * kG),
        marks_(static_cast<size_t>(granules), -1),
        largest_(largest) {}

  void step() {
    const int64_t action = below(100);
    if (action < 48) {
      take(1 + below(action < 4 ? 60 : 12));
    } else if (action < 90) {
      if (!live_.empty()) give_back(pick());
    } else if (!live_.empty()) {
      Live& l = live_[pick()];
      l.fixed = !l.fixed;
      l.fixed ? arena_.fix(l.extent) : arena_.settle(l.extent);
    }
    arena_.check_integrity();
  }
  int64_t n_moves = 0, n_taken = 0, n_refused = 0;

 private:
  struct Live {
    int32_t extent, owner;
    int64_t granules;
    bool fixed;
  };

  int64_t below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint32_t>(n)); }
  size_t pick() { return random_() % live_.size(); }
  void take(int64_t granules) {
    const bool fits = arena_.largest_hole() >= granules * kG;
    if (!fits) compact(granules);
    const int32_t owner = next_owner_++;
    const auto extent = arena_.take(granules * kG - below(kG), owner);
    ASSERT_EQ(extent.has_value(), fits || made_room_);
    if (!extent) {
      ++n_refused;
      return;
    }
    ++n_taken;
    fill(arena_.offset(*extent) / kG, granules, -1, owner);
    const bool fixed = below(4) == 0;
    if (!fixed) arena_.settle(*extent);
    live_.push_back({*extent, owner, granules, fixed});
  }
  void give_back(size_t i) {
    const Live l = live_[i];
    fill(arena_.offset(l.extent) / kG, l.granules, l.owner, -1);
    arena_.give_back(l.extent);
    live_[i] = live_.back();
    live_.pop_back();
  }
  void fill(int64_t first, int64_t n, int32_t from, int32_t to) {
    for (int64_t g = first; g < first + n; ++g) {
      ASSERT_EQ(marks_[static_cast<size_t>(g)], from);
      marks_[static_cast<size_t>(g)] = to;
    }
  }
  void compact(int64_t granules) {
    made_room_ = false;
    for (const ExtentArena::Move& m : arena_.plan_moves(granules * kG, largest_ * kG)) {
      ASSERT_LT(m.to, m.from);
      ASSERT_LE(m.bytes, largest_ * kG);
      fill(m.from / kG, m.bytes / kG, m.owner, -1);
      fill(m.to / kG, m.bytes / kG, -1, m.owner);
      arena_.moved(m);
      made_room_ = true;
      ++n_moves;
    }
    ASSERT_EQ(made_room_, arena_.largest_hole() >= granules * kG);
  }

  std::mt19937 random_;
  ExtentArena arena_;
  std::vector<int32_t> marks_;  // owner of each granule, -1: none
  const int64_t largest_;
  std::vector<Live> live_;
  int32_t next_owner_ = 0;
  bool made_room_ = false;
};

TEST(ExtentArena, random_runs_keep_every_granule_its_owners) {
  int64_t n_moves = 0;
  int64_t n_refused = 0;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    Simulation s(seed, seed % 2 == 0 ? 100 : 300, seed % 3 == 0 ? 6 : 1000);
    for (int i = 0; i < 60'000 && !testing::Test::HasFatalFailure(); ++i) s.step();
    n_moves += s.n_moves;
    n_refused += s.n_refused;
    EXPECT_GT(s.n_taken, 10'000);
  }
  EXPECT_GT(n_moves, 10'000);
  EXPECT_GT(n_refused, 10'000);
}

}  // namespace
}  // namespace lorry
