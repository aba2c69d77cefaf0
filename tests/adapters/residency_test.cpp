// Residency on its own: small cases by hand, and a simulation of the engine around it: requests
// that claim, pin, run, leave and are parked, loads that take their time or fail, a clock of its
// own.
#include "adapters/residency.h"

#include <algorithm>
#include <map>
#include <random>

#include <gtest/gtest.h>

namespace lorry {
namespace {

using namespace std::chrono_literals;
using Kind = Residency::Work::Kind;
using Time = Residency::Time;
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
  Time now_{};
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

// ---- simulation ----

struct SimConfig {
  std::string name;
  Residency::Options options;
  int32_t n_adapters = 12;
  int64_t max_granules = 8;
  bool supersede = false;  // versions are replaced while requests run with them
};

class ResidencySim {
 public:
  ResidencySim(const SimConfig& config, uint32_t seed)
      : config_(config),
        random_(seed),
        residency_(config.options),
        current_(static_cast<size_t>(config.n_adapters), -1) {}

  void step() {
    step_ = 1ms * (1 + below(9));
    now_ += step_;
    arrive();
    if (config_.supersede && below(50) == 0) supersede();
    end_loads();
    poll();
    admit();
    run();
    residency_.check_integrity();
    for (const Request& r : requests_) {
      if (!r.pinned) longest_wait_ = std::max(longest_wait_, now_ - r.since);
    }
  }
  void drain() {
    draining_ = true;
    for (int i = 0; i < 100'000 && !requests_.empty(); ++i) step();
    ASSERT_TRUE(requests_.empty()) << "somebody waits for ever";
  }

  Residency::Counts counts() const { return residency_.counts(); }
  int64_t n_served = 0, n_failed = 0, n_parked = 0;
  std::chrono::nanoseconds longest_wait() const { return longest_wait_; }

 private:
  struct Request {
    int32_t item = -1;
    int64_t steps = 0;  // to run
    bool pinned = false;
    Time since{};  // waits since then
  };
  struct Version {
    int32_t adapter = -1;
    int64_t granules = 0;
    int64_t claims = 0;
    bool current = true;
  };

  int64_t below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint32_t>(n)); }

  void arrive() {
    if (draining_ || requests_.size() >= 30 || below(3) != 0) return;
    const auto adapter = static_cast<size_t>(below(config_.n_adapters));
    if (current_[adapter] < 0) {
      const int64_t granules = 1 + static_cast<int64_t>(adapter) % config_.max_granules;
      current_[adapter] = residency_.add(granules * kG - below(kG));
      versions_[current_[adapter]] = {static_cast<int32_t>(adapter), granules, 0, true};
    }
    const int32_t item = current_[adapter];
    ++versions_[item].claims;
    residency_.want(item, now_);
    requests_.push_back({item, 1 + below(below(10) == 0 ? 200 : 20), false, now_});
  }
  void supersede() {
    const auto adapter = static_cast<size_t>(below(config_.n_adapters));
    const int32_t item = current_[adapter];
    if (item < 0) return;
    current_[adapter] = -1;
    versions_[item].current = false;
    if (versions_[item].claims == 0) {
      drop(item);
    } else {
      residency_.keep(item, true, now_);
    }
  }
  void drop(int32_t item) {
    Version& v = versions_.at(item);
    if (v.current) current_[static_cast<size_t>(v.adapter)] = -1;
    versions_.erase(item);
    residency_.remove(item);
  }
  void drop_lost() {
    for (const int32_t item : residency_.take_lost()) drop(item);
  }
  void leave(const Request& r) {
    Version& v = versions_.at(r.item);
    if (r.pinned) residency_.unpin(r.item);
    if (--v.claims > 0) return;
    residency_.unwant(r.item);
    if (!v.current) drop(r.item);
    drop_lost();
  }
  void end_loads() {
    for (size_t i = 0; i < loads_.size();) {
      if (now_ < loads_[i].second) {
        ++i;
        continue;
      }
      const auto [work, until] = loads_[i];
      loads_[i] = loads_.back();
      loads_.pop_back();
      const bool ok = work.kind == Kind::copy || below(20) != 0;
      residency_.finished(work.item, ok, now_);
      if (!ok) fail(work.item);
    }
  }
  void fail(int32_t item) {
    const auto at = versions_.find(item);
    if (at == versions_.end()) return;  // removed while it was read
    n_failed += static_cast<int64_t>(
        std::erase_if(requests_, [&](const Request& r) { return r.item == item; }));
    if (at->second.current) current_[static_cast<size_t>(at->second.adapter)] = -1;
    versions_.erase(at);
  }
  void poll() {
    while (true) {
      int64_t moved = 0;
      while (loads_.size() < 4 && moved <= config_.options.move_bytes) {
        const auto work = residency_.next(now_);
        drop_lost();
        residency_.check_integrity();
        if (!work) break;
        if (work->kind == Kind::move) {
          moved += work->bytes;
        } else {
          loads_.emplace_back(*work, now_ + 1ms * below(30));
        }
      }
      const auto item = residency_.rotate(now_);
      if (!item) return;
      for (Request& r : requests_) {
        if (r.item != *item || !r.pinned) continue;
        residency_.unpin(*item);
        r.pinned = false;
        r.since = now_;
        ++n_parked;
      }
    }
  }
  void admit() {
    for (Request& r : requests_) r.pinned = r.pinned || residency_.pin(r.item);
  }
  void run() {
    for (size_t i = 0; i < requests_.size();) {
      Request& r = requests_[i];
      const bool done = r.pinned && --r.steps == 0;
      if (done || below(300) == 0) {
        n_served += done ? 1 : 0;
        const Request ended = r;
        requests_.erase(requests_.begin() + static_cast<std::ptrdiff_t>(i));
        leave(ended);
      } else {
        ++i;
      }
    }
  }

  const SimConfig config_;
  std::mt19937 random_;
  Residency residency_;
  std::vector<int32_t> current_;         // item of each adapter, -1: none
  std::map<int32_t, Version> versions_;  // by item
  std::vector<Request> requests_;        // oldest first
  std::vector<std::pair<Residency::Work, Time>> loads_;
  Time now_{};
  std::chrono::nanoseconds step_{}, longest_wait_{};
  bool draining_ = false;
};

class ResidencySimulation : public testing::TestWithParam<SimConfig> {};

// Every line is FIFO, so all other adapters may be before one in both lines.
std::chrono::nanoseconds bound(const SimConfig& c) {
  constexpr auto kStep = 9ms;
  constexpr auto kLoad = 30ms + kStep;
  const int lines = c.options.host_bytes > 0 ? 2 : 1;
  return lines * c.n_adapters * (c.options.cycle_time + kStep + kLoad);
}

TEST_P(ResidencySimulation, everybody_gets_a_turn_and_the_books_add_up) {
  Residency::Counts sum;
  int64_t n_parked = 0;
  for (uint32_t seed = 0; seed < 4; ++seed) {
    ResidencySim sim(GetParam(), seed);
    for (int i = 0; i < 60'000; ++i) sim.step();
    sim.drain();
    if (!GetParam().supersede) {
      EXPECT_LT(sim.longest_wait(), bound(GetParam()));
    }
    EXPECT_GT(sim.n_served, 5'000);
    EXPECT_GT(sim.n_failed, 20);
    n_parked += sim.n_parked;
    const Residency::Counts c = sim.counts();
    sum.rotations += c.rotations;
    sum.host.evictions += c.host.evictions;
    sum.host.moves += c.host.moves;
    sum.device.evictions += c.device.evictions;
    sum.device.moves += c.device.moves;
    EXPECT_EQ(c.active, 0);
  }
  EXPECT_GT(sum.device.evictions, 1000);
  EXPECT_GT(sum.rotations, 100);
  EXPECT_GT(n_parked, 100);
  if (GetParam().options.host_bytes > 0) {
    EXPECT_GT(sum.host.evictions, 1000);
  }
  if (GetParam().options.move_bytes > 0) {
    EXPECT_GT(sum.device.moves, 100);
  }
}

SimConfig sim(const std::string& name, int64_t device, int64_t host, int64_t move = 100) {
  SimConfig c;
  c.name = name;
  c.options.device_bytes = device * kG;
  c.options.host_bytes = host * kG;
  c.options.cycle_time = 50ms;
  c.options.move_bytes = move * kG;
  return c;
}

std::vector<SimConfig> sim_configs() {
  std::vector<SimConfig> all = {sim("device_only", 20, 0),    sim("no_moves", 20, 0, 0),
                                sim("small_moves", 20, 0, 4), sim("two_tiers", 14, 30),
                                sim("small_host", 20, 6),     sim("one_fits", 8, 12)};
  all.push_back(sim("few_active", 24, 30));
  all.back().options.max_active = 2;
  for (const auto& [name, host] : {std::pair{"superseded", 0}, std::pair{"superseded_host", 24}}) {
    all.push_back(sim(name, 20, host));
    all.back().supersede = true;
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, ResidencySimulation, testing::ValuesIn(sim_configs()),
                         [](const auto& i) { return i.param.name; });

}  // namespace
}  // namespace lorry
