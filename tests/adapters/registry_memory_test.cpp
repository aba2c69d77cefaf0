// The registry's memory: two tiers, images that move, requests that step aside; then random traffic
// over everything.
#include <random>

#include "adapters/registry_test_base.h"

namespace lorry {
namespace {

using namespace std::chrono_literals;
using test::Draft;
using test::kOne;

class RegistryMemory : public test::RegistryTest {
 protected:
  // What the adapter does to q, as the backend would read it now.
  std::vector<double> delta(AdapterHandle h) {
    const SitePatch& pair =
        adapter(h)->view().patches[static_cast<size_t>(table_.index({SiteKind::q, 0}))];
    return test::delta_of(pair, 8, 8);
  }
  // As the engine: all pins of the content that is named are given up.
  bool rotate(std::vector<AdapterHandle>& pinned) {
    registry().poll();
    const auto content = registry().rotate();
    if (!content) return false;
    std::erase_if(pinned, [&](AdapterHandle h) {
      if (registry().content(h) != *content) return false;
      registry().unpin(h);
      return true;
    });
    registry().poll();
    registry().check_integrity();
    return true;
  }
};

TEST_F(RegistryMemory, the_host_tier_spares_the_second_read) {
  options_.device_bytes = kOne;
  options_.host_bytes = 3 * kOne;
  write_many(3);
  for (const char* name : {"a0", "a1", "a2", "a0", "a1", "a2"}) end(run(name));
  const AdapterSnapshot s = registry().snapshot();
  EXPECT_EQ(s.loads_started, 3);
  EXPECT_EQ(s.memory.host.fills, 3);
  EXPECT_EQ(s.memory.device.fills, 6);
  EXPECT_EQ(s.memory.device.evictions, 5);
  EXPECT_EQ(entry("a0").state, AdapterState::host);
  EXPECT_EQ(entry("a2").state, AdapterState::device);
  write("a3", 3);
  end(run("a3"));
  EXPECT_EQ(registry().snapshot().memory.host.evictions, 1);
  EXPECT_EQ(entry("a0").name, "") << "a0 was used least recently";
  end(run("a0"));
  EXPECT_EQ(loads(), 5);
}

TEST_F(RegistryMemory, what_is_larger_than_the_host_tier_goes_to_the_device_directly) {
  options_.device_bytes = 4 * kOne;
  options_.host_bytes = kOne;
  write("small", 1);
  write("large", 2, 80);  // 2 * 80 * 8 * 4 bytes
  const AdapterHandle small = run("small");
  const AdapterHandle large = run("large");
  const AdapterSnapshot s = registry().snapshot();
  EXPECT_EQ(s.memory.host.used, kOne);
  EXPECT_EQ(s.memory.device.used, 3 * kOne);
  end(small);
  end(large);
}

TEST_F(RegistryMemory, images_keep_their_values_wherever_they_go) {
  options_.device_bytes = 4 * kOne;
  options_.host_bytes = 8 * kOne;
  std::vector<std::vector<double>> expected;
  for (int i = 0; i < 4; ++i) {
    const std::string folder = write(fmt::format("a{}", i), static_cast<float>(i));
    const auto alone = load_adapter(folder, {&table_, &ops_});
    expected.push_back(test::delta_of(
        alone->view().patches[static_cast<size_t>(table_.index({SiteKind::q, 0}))], 8, 8));
  }
  std::vector<AdapterHandle> h;
  for (int i = 0; i < 4; ++i) h.push_back(run(fmt::format("a{}", i)));
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(delta(h[i]), expected[i]);
  end(h[0]);
  end(h[2]);
  write("large", 9, 80);  // needs three pages in a row: a1 or a3 must move while it runs
  registry().unpin(h[3]);
  const AdapterHandle large = run("large");
  EXPECT_GT(registry().snapshot().memory.device.moves, 0);
  EXPECT_EQ(delta(h[1]), expected[1]);
  end(large);
  settle(h[3]);
  EXPECT_EQ(delta(h[3]), expected[3]);
  const AdapterHandle again = run("a2");
  EXPECT_EQ(delta(again), expected[2]);
  for (const AdapterHandle x : {h[1], h[3], again}) end(x);
}

TEST_F(RegistryMemory, adapters_in_steady_use_step_aside_after_cycle_time) {
  options_.device_bytes = kOne;
  write_many(2);
  std::vector<AdapterHandle> pinned = {run("a0"), run("a0")};
  const std::vector<AdapterHandle> first = pinned;
  const AdapterHandle other = registry().acquire("a1");
  until_waiting(1);
  now_ += 249ms;
  EXPECT_FALSE(rotate(pinned));
  now_ += 1ms;
  EXPECT_TRUE(rotate(pinned));
  EXPECT_TRUE(pinned.empty()) << "both requests";
  EXPECT_EQ(registry().pin(first[0]), nullptr);
  settle(other);
  EXPECT_EQ(state(other), AdapterState::device);
  now_ += 1s;
  end(other);
  for (const AdapterHandle h : first) settle(h);
  EXPECT_EQ(registry().snapshot().loads_started, 3) << "a0 was read again";
  for (const AdapterHandle h : first) end(h);
  EXPECT_EQ(registry().snapshot().memory.rotations, 1);
}

TEST_F(RegistryMemory, files_that_changed_meanwhile_fail_who_had_begun_and_nobody_else) {
  options_.device_bytes = kOne;
  write_many(2);
  std::vector<AdapterHandle> pinned = {run("a0")};
  const AdapterHandle begun = pinned[0];
  const AdapterHandle other = registry().acquire("a1");
  until_waiting(1);
  now_ += 2s;
  ASSERT_TRUE(rotate(pinned));
  settle(other);
  write("a0", 77);
  end(other);
  settle(begun);
  ASSERT_EQ(state(begun), AdapterState::failed);
  EXPECT_NE(std::string(registry().status(begun).error->what()).find("send it again"),
            std::string::npos);
  registry().release(begun);
  end(run("a0"));  // at once
}

TEST_F(RegistryMemory, F12_a_replaced_version_runs_to_its_end) {
  options_.device_bytes = kOne;
  write_many(2);
  std::vector<AdapterHandle> pinned = {run("a0")};
  const AdapterHandle old = pinned[0];
  const Digest before = digest(old);
  write("a0", 5);
  registry().reload("a0");
  const AdapterHandle other = registry().acquire("a1");
  until_waiting(1);
  now_ += 1h;
  EXPECT_FALSE(rotate(pinned)) << "its files are gone, so it could not come back";
  EXPECT_EQ(digest(old), before);
  end(old);
  settle(other);
  EXPECT_EQ(state(other), AdapterState::device);
  end(other);
}

TEST_F(RegistryMemory, at_most_max_active_run_at_once) {
  options_.max_active = 2;
  write_many(3);
  const AdapterHandle a0 = run("a0");
  const AdapterHandle a1 = run("a1");
  const AdapterHandle a2 = registry().acquire("a2");
  until([&] { return state(a2) == AdapterState::device; });
  EXPECT_EQ(registry().pin(a2), nullptr);
  EXPECT_EQ(registry().snapshot().memory.active, 2);
  end(a0);
  EXPECT_NE(registry().pin(a2), nullptr);
  end(a1);
  end(a2);
}

// Random traffic over names that come, fail, change and vanish, of two sizes and three sources,
// with requests that run, step aside and leave; every count is checked each step.
class RegistryTraffic : public RegistryMemory, public testing::WithParamInterface<size_t> {
 protected:
  RegistryTraffic() {
    options_.device_bytes = 5 * kOne;
    options_.host_bytes = GetParam() * kOne;
    options_.max_failures = 4;
    options_.max_active = 3;
    options_.fetch_memory = 20s;
    options_.fetch = [folder = temp_.path()](const AdapterPart& part,
                                             const std::atomic<bool>& cancelled) {
      std::this_thread::sleep_for(100us);
      if (cancelled || part.name == "a7") fail(Code::unavailable, "not now");
      return folder + "/fixed-" + part.name;
    };
    write_many(6);
    for (int i = 0; i < 6; ++i) write(fmt::format("fixed-a{}", i), static_cast<float>(i / 2), 80);
  }

  int below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  // Takes one of them out.
  AdapterHandle take_any(std::vector<AdapterHandle>& from) {
    const auto at = from.begin() + below(static_cast<int>(from.size()));
    const AdapterHandle h = *at;
    from.erase(at);
    return h;
  }
  void arrive(const AdapterRef& ref) {
    if (waiting_.size() + pinned_.size() < 12) waiting_.push_back(registry().acquire(ref));
  }
  void act() {
    AdapterRef ref(fmt::format("a{}", below(9)));  // a6, a7, a8 do not exist
    if (below(3) == 0) ref.parts[0].source = AdapterSource::hub;
    if (below(3) == 0) ref.parts[0].api_token = fmt::format("t{}", below(3));
    const int action = below(100);
    if (action < 45) arrive(ref);
    if (action >= 45 && action < 60 && !waiting_.empty()) registry().release(take_any(waiting_));
    if (action >= 50 && action < 90 && !pinned_.empty()) {
      ++served_;
      end(take_any(pinned_));
    }
    if (action >= 90 && action < 92) registry().reload(ref.parts[0].name);
    if (action == 93) write("a0", static_cast<float>(served_));
    if (action >= 94) now_ += 700ms * below(20);
    if (action % 8 == 0) std::this_thread::sleep_for(50us);
  }
  void step_aside() {
    while (const auto content = registry().rotate()) {
      std::erase_if(pinned_, [&](AdapterHandle h) {
        if (registry().content(h) != *content) return false;
        registry().unpin(h);
        waiting_.push_back(h);
        return true;
      });
      registry().poll();
      registry().check_integrity();
    }
  }
  void admit() {
    std::erase_if(waiting_, [&](AdapterHandle h) {
      if (state(h) == AdapterState::failed) {
        registry().release(h);
        return true;
      }
      if (registry().pin(h) == nullptr) return false;
      pinned_.push_back(h);
      return true;
    });
    registry().check_integrity();
  }

  std::mt19937 random_{7};
  std::vector<AdapterHandle> waiting_, pinned_;
  int64_t served_ = 0;
};

TEST_P(RegistryTraffic, keeps_the_counts) {
  for (int step = 0; step < 6000; ++step) {
    act();
    registry().poll();
    registry().check_integrity();
    step_aside();
    admit();
  }
  for (const AdapterHandle h : pinned_) end(h);
  for (const AdapterHandle h : waiting_) registry().release(h);
  registry().check_integrity();
  const AdapterSnapshot s = registry().snapshot();
  EXPECT_GT(served_, 100);
  EXPECT_GT(s.memory.device.evictions, 10);
  EXPECT_GT(s.memory.rotations, 5);
  EXPECT_GT(s.loads_failed, 10);
  EXPECT_EQ(s.memory.active, 0);
}

INSTANTIATE_TEST_SUITE_P(HostPages, RegistryTraffic, testing::Values(0U, 2U, 8U));

}  // namespace
}  // namespace lorry
