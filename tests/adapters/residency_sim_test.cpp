// A simulation of the engine around Residency: requests that claim, pin, run, leave and are parked,
// loads that take their time or fail, versions that are replaced, a clock of its own; 2 million
// steps, the books checked after each.
#include <algorithm>
#include <map>
#include <random>

#include <gtest/gtest.h>

#include "adapters/residency.h"

namespace lorry {
namespace {

using namespace std::chrono_literals;
using Kind = Residency::Work::Kind;
using Time = Residency::Time;
constexpr int64_t kG = ExtentArena::kGranule;

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
