// Residency on its own: small cases by hand, and a simulation of the engine around it: requests
// that claim, pin, run, leave and are parked, loads that take their time or fail, a clock of its
// own.
#include "adapters/residency.h"

#include <gtest/gtest.h>

namespace lorry {
namespace {

using namespace std::chrono_literals;
using Kind = Residency::Work::Kind;
constexpr int64_t kG = ExtentArena::kGranule;

class ResidencyTest : public testing::Test {
 protected:
  Residency& residency() {
    if (!residency_) residency_.emplace(options_);
    return *residency_;
  }
  int32_t wanted(int64_t granules) {
    const int32_t item = residency().add(granules * kG);
    residency().want(item, now_);
    return item;
  }
  // Carries out what there is to do; returns it as "r0h" (read 0 into host), "c0", "m0"...
  std::string work() {
    std::string done;
    while (const auto w = residency().next(now_)) {
      residency().check_integrity();
      const char kind = w->kind == Kind::read ? 'r' : w->kind == Kind::copy ? 'c' : 'm';
      done += std::string(done.empty() ? "" : " ") + kind + std::to_string(w->item) +
              (w->tier == AdapterTier::host ? "h" : "");
      if (w->kind != Kind::move) residency().finished(w->item, true, now_);
      residency().check_integrity();
    }
    return done;
  }
  int32_t pinned(int64_t granules) {
    const int32_t item = wanted(granules);
    work();
    EXPECT_TRUE(residency().pin(item));
    return item;
  }
  void end(int32_t item) {
    residency().unpin(item);
    residency().unwant(item);
  }
  bool on_device(int32_t item) { return residency().is_in(item, AdapterTier::device); }

  Residency::Options options_{.device_bytes = 4 * kG, .host_bytes = 0, .cycle_time = 100ms};
  std::optional<Residency> residency_;
  Residency::Time now_{};
};

TEST_F(ResidencyTest, images_go_through_the_host_tier_unless_they_are_larger) {
  options_.host_bytes = 2 * kG;
  wanted(1);
  EXPECT_EQ(work(), "r0h c0");
  wanted(3);
  EXPECT_EQ(work(), "r1");
  const Residency::Counts c = residency().counts();
  EXPECT_EQ(c.host.used, kG);
  EXPECT_EQ(c.device.used, 4 * kG);
  EXPECT_EQ(c.device.fills, 2);
}

TEST_F(ResidencyTest, what_the_device_evicts_comes_back_from_the_host) {
  options_.host_bytes = 8 * kG;
  const int32_t a = pinned(3);
  end(a);
  const int32_t b = pinned(2);
  EXPECT_FALSE(on_device(a));
  EXPECT_TRUE(residency().is_in(a, AdapterTier::host));
  end(b);
  residency().want(a, now_);
  EXPECT_EQ(work(), "c0") << "no read";
  EXPECT_TRUE(residency().take_lost().empty());
}

TEST_F(ResidencyTest, evicts_the_least_recently_used_and_reports_what_is_lost) {
  const int32_t a = pinned(1);
  const int32_t b = pinned(1);
  const int32_t c = pinned(2);
  for (const int32_t item : {b, c, a}) end(item);
  EXPECT_TRUE(residency().take_lost().empty());
  wanted(1);
  EXPECT_EQ(work(), "r3");
  EXPECT_EQ(residency().take_lost(), std::vector{b});
  residency().remove(b);
  EXPECT_TRUE(on_device(a));
  EXPECT_TRUE(on_device(c));
}

TEST_F(ResidencyTest, moves_images_together_rather_than_evict) {
  const int32_t a = pinned(1);
  const int32_t b = pinned(1);
  const int32_t c = pinned(1);
  const int32_t d = pinned(1);
  end(a);
  end(c);
  residency().remove(a);
  residency().remove(c);
  const int32_t e = wanted(2);  // .b.d
  EXPECT_EQ(work(), "m" + std::to_string(b) + " r" + std::to_string(e));
  EXPECT_EQ(residency().offset(b, AdapterTier::device), 0);
  EXPECT_TRUE(on_device(d));
  EXPECT_EQ(residency().counts().device.moved_bytes, kG);
}

TEST_F(ResidencyTest, nobody_slips_past_a_large_one) {
  const int32_t a = pinned(3);
  const int32_t large = wanted(2);
  const int32_t small = wanted(1);
  EXPECT_EQ(work(), "");
  end(a);
  EXPECT_EQ(work(), "r" + std::to_string(large) + " r" + std::to_string(small));
}

TEST_F(ResidencyTest, who_waits_to_be_pinned_is_not_evicted) {
  const int32_t a = pinned(4);
  end(a);
  residency().want(a, now_);  // still there: to be pinned at the next step
  const int32_t b = wanted(1);
  EXPECT_EQ(work(), "");
  EXPECT_TRUE(residency().pin(a));
  end(a);
  EXPECT_EQ(work(), "r" + std::to_string(b));
}

TEST_F(ResidencyTest, rotates_the_oldest_turn_after_cycle_time) {
  const int32_t a = pinned(2);
  now_ += 40ms;
  const int32_t b = pinned(2);
  EXPECT_EQ(residency().rotate(now_), std::nullopt) << "nobody waits";
  now_ += 30ms;
  const int32_t c = wanted(2);
  EXPECT_EQ(work(), "");
  EXPECT_EQ(residency().rotate(now_), std::nullopt) << "its turn has lasted 70 ms";
  now_ += 30ms;
  work();
  EXPECT_EQ(residency().rotate(now_), a);
  residency().unpin(a);
  EXPECT_FALSE(residency().pin(a)) << "it stands in line";
  EXPECT_EQ(work(), "r" + std::to_string(c));
  EXPECT_TRUE(residency().pin(c));
  now_ += 40ms;
  work();
  EXPECT_EQ(residency().rotate(now_), b);
  residency().unpin(b);
  EXPECT_EQ(work(), "r" + std::to_string(a)) << "it comes back";
  EXPECT_EQ(residency().counts().rotations, 2);
}

TEST_F(ResidencyTest, new_requests_do_not_prolong_a_turn_while_others_wait) {
  const int32_t a = pinned(4);
  const int32_t b = wanted(1);
  now_ += 99ms;
  end(a);
  residency().want(a, now_);
  EXPECT_EQ(work(), "");
  EXPECT_TRUE(residency().pin(a)) << "its turn goes on";
  now_ += 1ms;
  end(a);
  residency().want(a, now_);
  EXPECT_FALSE(residency().pin(a)) << "its turn is over";
  EXPECT_EQ(work(), "r" + std::to_string(b));
}

TEST_F(ResidencyTest, a_place_among_the_active_is_taken_in_turns_too) {
  options_.max_active = 1;
  const int32_t a = pinned(1);
  const int32_t b = wanted(1);
  EXPECT_NE(work(), "");
  EXPECT_FALSE(residency().pin(b));
  now_ += 100ms;
  work();
  EXPECT_EQ(residency().rotate(now_), a);
  residency().unpin(a);
  EXPECT_TRUE(residency().pin(b));
  EXPECT_EQ(work(), "") << "a is still there, and its turn begins when a place is free";
  EXPECT_FALSE(residency().pin(a));
  now_ += 100ms;
  work();
  EXPECT_EQ(residency().rotate(now_), b);
  residency().unpin(b);
  EXPECT_TRUE(residency().pin(a));
}

TEST_F(ResidencyTest, what_is_kept_does_not_lose_its_last_image_while_it_is_wanted) {
  const int32_t a = pinned(4);
  residency().keep(a, true, now_);
  const int32_t b = wanted(1);
  now_ += 1s;
  work();
  EXPECT_EQ(residency().rotate(now_), std::nullopt);
  residency().unpin(a);
  EXPECT_EQ(work(), "") << "a is wanted";
  residency().unwant(a);
  EXPECT_EQ(work(), "r" + std::to_string(b));
}

TEST_F(ResidencyTest, what_is_kept_while_it_waits_for_its_turn_gets_it) {
  const int32_t a = pinned(4);
  const int32_t b = wanted(1);
  now_ += 1s;
  work();
  EXPECT_EQ(residency().rotate(now_), a);
  residency().unpin(a);
  residency().keep(a, true, now_);
  EXPECT_TRUE(residency().pin(a)) << "else it would block b for ever";
  end(a);
  EXPECT_EQ(work(), "r" + std::to_string(b));
}

TEST_F(ResidencyTest, a_failed_read_returns_its_memory) {
  options_.host_bytes = 4 * kG;
  const int32_t a = wanted(2);
  const auto w = residency().next(now_);
  ASSERT_TRUE(w);
  EXPECT_EQ(residency().counts().host.used, 2 * kG);
  residency().finished(a, false, now_);
  EXPECT_EQ(residency().counts().host.used, 0);
  residency().check_integrity();
}

}  // namespace
}  // namespace lorry
