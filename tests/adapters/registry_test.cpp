// The registry with real (tiny) folders and loader threads. What loads when is steered by a gate in
// the packing and by a clock that only the test moves.
#include "adapters/registry.h"

#include <algorithm>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "adapters/support.h"

namespace lorry {
namespace {

using namespace std::chrono_literals;
using test::Draft;

constexpr size_t kOne = 4096;  // bytes of one of these adapters

class Registry : public testing::Test {
 protected:
  Registry() : table_(test::mixtral_sites({1, 2, 8, 8, 4, 6, 10})) {
    options_.root = temp_.path();
    options_.now = [this] { return now_; };
    options_.wake = [this] { ++wakes_; };
    options_.budget_bytes = 4 * kOne;
  }

  AdapterRegistry& registry() {
    if (!registry_) registry_.emplace(options_, AdapterTarget{&table_, &ops_});
    return *registry_;
  }
  std::string write(const std::string& name, float seed = 1, int64_t rank = 2) {
    Draft draft;
    draft.config = fmt::format(R"({{"peft_type": "LORA", "r": {}, "lora_alpha": 4}})", rank);
    return draft.pair("model.layers.0.self_attn.q_proj", rank, 8, 8, seed)
        .write(temp_.path() + "/" + name);
  }
  void write_many(int n) {
    for (int i = 0; i < n; ++i) write(fmt::format("a{}", i), static_cast<float>(i));
  }
  AdapterState state(AdapterHandle h) { return registry().status(h).state; }
  // Polls until `done`; fails after ten seconds.
  template <class F>
  void until(F&& done) {
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (!done()) {
      ASSERT_LT(std::chrono::steady_clock::now(), end) << "nothing happens";
      std::this_thread::sleep_for(100us);
      registry().poll();
      registry().check_integrity();
    }
  }
  void settle(AdapterHandle h) {
    until([&] { return state(h) == AdapterState::ready || state(h) == AdapterState::failed; });
  }
  // Claims and waits for it; the claim remains.
  AdapterHandle ready(const std::string& name) {
    const AdapterHandle h = registry().acquire(name);
    settle(h);
    EXPECT_EQ(state(h), AdapterState::ready) << name;
    return h;
  }
  void expect_failed(const std::string& name, Code code, const std::string& part) {
    const AdapterHandle h = registry().acquire(name);
    settle(h);
    ASSERT_EQ(state(h), AdapterState::failed) << name;
    EXPECT_EQ(static_cast<int>(registry().status(h).error->code()), static_cast<int>(code));
    EXPECT_NE(std::string(registry().status(h).error->what()).find(part), std::string::npos)
        << registry().status(h).error->what();
    registry().release(h);
    registry().check_integrity();
  }
  AdapterSnapshot::Entry entry(const std::string& name) {
    for (const auto& e : registry().snapshot().entries) {
      if (e.name == name) return e;
    }
    return {};
  }

  test::TempFolder temp_;
  test::PackOps ops_;
  SiteTable table_;
  std::chrono::steady_clock::time_point now_{};
  std::atomic<int> wakes_{0};
  AdapterRegistry::Options options_;
  std::optional<AdapterRegistry> registry_;  // last: its threads use the others
};

TEST_F(Registry, LoadsANameAndKeepsItForTheNext) {
  write("sql");
  const AdapterHandle h = registry().acquire("sql");
  EXPECT_EQ(state(h), AdapterState::loading);
  settle(h);
  const Adapter* adapter = registry().status(h).adapter;
  ASSERT_NE(adapter, nullptr);
  EXPECT_EQ(adapter->sites().size(), 1U);
  until([&] { return wakes_ == 2; });  // checked, then read
  registry().release(h);
  const AdapterHandle again = registry().acquire("sql");
  EXPECT_EQ(state(again), AdapterState::ready) << "still in memory";
  EXPECT_EQ(registry().status(again).adapter, adapter);
  EXPECT_EQ(registry().snapshot().loads_started, 1);
  registry().release(again);
}

TEST_F(Registry, RegisteredNamesNeedNoRoot) {
  const std::string path = write("x");
  options_.root.clear();
  registry().register_name("org/tuned", path);
  EXPECT_EQ(entry("org/tuned").state, AdapterState::absent);
  const AdapterHandle h = ready("org/tuned");
  const AdapterSnapshot::Entry e = entry("org/tuned");
  EXPECT_TRUE(e.registered);
  EXPECT_EQ(e.holds, 1);
  EXPECT_EQ(e.bytes, kOne);
  EXPECT_EQ(e.max_rank, 2);
  EXPECT_EQ(e.sites, 1U);
  EXPECT_EQ(e.digest, to_hex(registry().status(h).adapter->digest()));
  registry().release(h);
  expect_failed("x", Code::not_found, "adapter 'x' not found");
  EXPECT_THROW(registry().register_name("../x", path), Error);
  EXPECT_TRUE(registry().unregister_name("org/tuned"));
  EXPECT_FALSE(registry().unregister_name("org/tuned"));
  expect_failed("org/tuned", Code::not_found, "not found");
}

TEST_F(Registry, F1NotFoundIsRememberedForAWhile) {
  expect_failed("none", Code::not_found, "none");
  EXPECT_EQ(registry().snapshot().loads_started, 1);
  write("none");
  now_ += 29s;
  expect_failed("none", Code::not_found, "none");
  EXPECT_EQ(registry().snapshot().loads_started, 1) << "no file was touched";
  now_ += 1s;
  registry().release(ready("none"));
  EXPECT_EQ(registry().snapshot().loads_started, 2);
}

TEST_F(Registry, F1RememberedFailuresAreBounded) {
  options_.max_failures = 8;
  for (int i = 0; i < 50; ++i) expect_failed(fmt::format("none{}", i), Code::not_found, "none");
  registry().poll();
  EXPECT_LE(registry().snapshot().entries.size(), 8U);
}

TEST_F(Registry, F2F3F4FailuresCarryTheirSentence) {
  write_file(write("broken") + "/adapter_config.json", "{");
  expect_failed("broken", Code::bad_file, "adapter_config.json");
  write("big", 1, 513);
  expect_failed("big", Code::bad_file, "r is 513");
  Draft shape;
  shape.pair("model.layers.0.self_attn.q_proj", 2, 9, 8).write(temp_.path() + "/shape");
  expect_failed("shape", Code::bad_file, "found [2, 9]");
  EXPECT_EQ(entry("shape").state, AdapterState::failed);
  EXPECT_NE(entry("shape").error.find("found [2, 9]"), std::string::npos);
}

TEST_F(Registry, F6NamesOutsideTheGrammarAreRefusedAtOnce) {
  for (const char* name : {"../../x", "/etc", "~", "%2e%2e", "a\r\n"}) {
    const AdapterHandle h = registry().acquire(name);
    EXPECT_EQ(state(h), AdapterState::failed);
    EXPECT_EQ(registry().status(h).error->code(), Code::invalid_argument);
    registry().release(h);
  }
  EXPECT_EQ(registry().snapshot().loads_started, 0);
  EXPECT_TRUE(registry().snapshot().entries.empty());
  std::filesystem::create_directory_symlink("/", temp_.path() + "/out");
  expect_failed("out", Code::invalid_argument, "out of the adapter root");
}

TEST_F(Registry, F8LargerThanAllRoomIsRefusedBeforeReading) {
  options_.budget_bytes = kOne - 1;
  write("a");
  ops_.shut();  // packing would never return
  expect_failed("a", Code::over_capacity, "takes 4096 bytes of adapter memory, which holds 4095");
  EXPECT_EQ(registry().snapshot().used_bytes, 0U);
}

TEST_F(Registry, F9ThousandClaimsShareOneLoad) {
  write("cold");
  ops_.shut();
  std::vector<AdapterHandle> claims;
  for (int i = 0; i < 1000; ++i) claims.push_back(registry().acquire("cold"));
  until([&] { return registry().snapshot().used_bytes == kOne; });
  ops_.await_packing(1);
  for (int i = 0; i < 500; ++i) registry().release(claims[static_cast<size_t>(i)]);
  ops_.open();
  settle(claims.back());
  for (int i = 500; i < 1000; ++i) {
    EXPECT_EQ(state(claims[static_cast<size_t>(i)]), AdapterState::ready);
    registry().release(claims[static_cast<size_t>(i)]);
  }
  EXPECT_EQ(registry().snapshot().loads_started, 1);
  EXPECT_EQ(registry().snapshot().loads_done, 1);
  registry().check_integrity();
}

TEST_F(Registry, F10TenAdaptersOverTwoSlotsAllAnswer) {
  options_.budget_bytes = 2 * kOne;
  write_many(10);
  std::vector<AdapterHandle> open;
  for (int i = 0; i < 10; ++i) open.push_back(registry().acquire(fmt::format("a{}", i)));
  int served = 0;
  until([&] {
    EXPECT_LE(registry().snapshot().resident, 2);
    std::erase_if(open, [&](AdapterHandle h) {
      if (state(h) != AdapterState::ready) return false;
      registry().release(h);
      ++served;
      return true;
    });
    return open.empty();
  });
  EXPECT_EQ(served, 10);
  EXPECT_EQ(registry().snapshot().evictions, 8);
}

TEST_F(Registry, WaitsForRoomAndNeverEvictsWhatIsHeld) {
  options_.budget_bytes = 2 * kOne;
  write_many(3);
  const AdapterHandle a0 = ready("a0");
  const AdapterHandle a1 = ready("a1");
  const AdapterHandle a2 = registry().acquire("a2");
  until([&] { return state(a2) == AdapterState::waiting; });
  EXPECT_EQ(entry("a2").state, AdapterState::waiting);
  EXPECT_EQ(state(a0), AdapterState::ready);
  registry().release(a1);  // gives room without a poll
  EXPECT_EQ(state(a2), AdapterState::loading);
  settle(a2);
  EXPECT_EQ(entry("a1").state, AdapterState::absent);
  EXPECT_EQ(entry("a0").state, AdapterState::ready);
  registry().release(a0);
  registry().release(a2);
}

TEST_F(Registry, AnAdapterInSteadyUseDoesNotKeepOthersOut) {
  options_.budget_bytes = kOne;
  write_many(2);
  AdapterHandle busy = ready("a0");
  const AdapterHandle other = registry().acquire("a1");
  until([&] { return state(other) == AdapterState::waiting; });
  for (int i = 0; i < 10; ++i) {  // overlapping claims: never idle
    const AdapterHandle next = registry().acquire("a0");
    EXPECT_EQ(state(next), AdapterState::ready);
    registry().release(busy);
    busy = next;
    now_ += 199ms;
  }
  EXPECT_EQ(state(other), AdapterState::waiting);
  now_ += 10ms;
  const AdapterHandle late = registry().acquire("a0");
  const AdapterHandle withdrawn = registry().acquire("a0");
  EXPECT_EQ(state(late), AdapterState::waiting) << "behind a1";
  EXPECT_EQ(state(busy), AdapterState::ready);
  registry().check_integrity();
  registry().release(withdrawn);
  registry().release(busy);
  settle(other);
  EXPECT_EQ(state(other), AdapterState::ready);
  EXPECT_NE(state(late), AdapterState::ready);
  registry().release(other);
  settle(late);
  EXPECT_EQ(state(late), AdapterState::ready);
  registry().release(late);
  registry().check_integrity();
}

TEST_F(Registry, QueuedClaimsGoOnWithContentThatStayed) {
  options_.budget_bytes = 2 * kOne;
  write_many(3);
  const AdapterHandle a0 = ready("a0");
  const AdapterHandle a1 = ready("a1");
  const AdapterHandle a2 = registry().acquire("a2");
  until([&] { return state(a2) == AdapterState::waiting; });
  now_ += 3s;
  const AdapterHandle late = registry().acquire("a0");
  EXPECT_EQ(state(late), AdapterState::waiting);
  registry().release(a1);
  EXPECT_EQ(state(late), AdapterState::ready) << "a2 has its room, a0 never left";
  EXPECT_EQ(registry().status(late).adapter, registry().status(a0).adapter);
  settle(a2);
  for (const AdapterHandle h : {a0, a2, late}) registry().release(h);
  EXPECT_EQ(registry().snapshot().loads_started, 3);
  registry().check_integrity();
}

TEST_F(Registry, EvictsTheLeastRecentlyReleased) {
  options_.budget_bytes = 3 * kOne;
  write_many(4);
  for (const char* name : {"a0", "a1", "a2", "a0"}) registry().release(ready(name));
  registry().release(ready("a3"));
  EXPECT_EQ(entry("a0").state, AdapterState::ready);
  EXPECT_EQ(entry("a1").state, AdapterState::absent);
  EXPECT_EQ(entry("a2").state, AdapterState::ready);
}

TEST_F(Registry, WithdrawnClaimsLeaveNothingBehind) {
  options_.budget_bytes = kOne;
  write_many(40);
  const AdapterHandle held = ready("a0");
  std::vector<AdapterHandle> claims;
  for (int i = 1; i < 40; ++i) claims.push_back(registry().acquire(fmt::format("a{}", i)));
  until([&] { return state(claims.front()) == AdapterState::waiting; });
  for (const AdapterHandle h : claims) registry().release(h);
  until([&] { return registry().snapshot().entries.size() == 1; });
  EXPECT_EQ(state(held), AdapterState::ready);
  EXPECT_EQ(registry().snapshot().used_bytes, kOne);
  registry().release(held);
}

TEST_F(Registry, EqualContentIsKeptOnce) {
  write("one");
  write("two");
  const AdapterHandle one = ready("one");
  const AdapterHandle two = ready("two");
  EXPECT_EQ(registry().status(one).adapter, registry().status(two).adapter);
  EXPECT_EQ(registry().snapshot().used_bytes, kOne);
  registry().release(one);
  EXPECT_EQ(state(two), AdapterState::ready);
  registry().release(two);
}

TEST_F(Registry, F12ReloadLeavesRunningRequestsAlone) {
  write("a", 1);
  const AdapterHandle old = ready("a");
  const Digest before = registry().status(old).adapter->digest();
  write("a", 2);
  registry().reload("a");
  const AdapterHandle fresh = ready("a");
  EXPECT_EQ(registry().status(old).adapter->digest(), before);
  EXPECT_NE(registry().status(fresh).adapter->digest(), before);
  EXPECT_EQ(registry().snapshot().resident, 2);
  registry().reload("a");  // nothing changed in the file
  const AdapterHandle same = ready("a");
  EXPECT_EQ(registry().status(same).adapter, registry().status(fresh).adapter);
  for (const AdapterHandle h : {old, fresh, same}) registry().release(h);
  registry().check_integrity();
}

TEST_F(Registry, F12ReloadWhileLoadingStartsAnew) {
  write("a", 1);
  ops_.shut();
  const AdapterHandle first = registry().acquire("a");
  until([&] { return registry().snapshot().used_bytes == kOne; });
  ops_.await_packing(1);  // the old content has been read
  write("a", 2);
  registry().reload("a");
  const AdapterHandle second = registry().acquire("a");
  ops_.open();
  settle(first);
  settle(second);
  EXPECT_NE(registry().status(first).adapter, registry().status(second).adapter);
  registry().release(first);
  registry().release(second);
}

TEST_F(Registry, F11BadLoadsDoNotHurtGoodOnes) {
  write_many(4);
  for (int i = 0; i < 25; ++i)
    write_file(write(fmt::format("bad{}", i)) + "/adapter_config.json", "{");
  int good = 0;
  int bad = 0;
  for (int i = 0; i < 25; ++i) {
    const AdapterHandle b = registry().acquire(fmt::format("bad{}", i));
    const AdapterHandle g = registry().acquire(fmt::format("a{}", i % 4));
    settle(b);
    settle(g);
    bad += state(b) == AdapterState::failed ? 1 : 0;
    good += state(g) == AdapterState::ready ? 1 : 0;
    registry().release(b);
    registry().release(g);
  }
  EXPECT_EQ(good, 25);
  EXPECT_EQ(bad, 25);
  EXPECT_EQ(registry().snapshot().used_bytes, 4 * kOne) << "failures give their room back";
}

TEST_F(Registry, FailureWhileReadingGivesItsRoomBack) {
  Draft draft;
  draft.config = R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4})";
  draft.pair("model.layers.0.self_attn.q_proj", 2, 8, 8);
  draft.tensors.begin()->second.second[0] = std::numeric_limits<float>::quiet_NaN();
  draft.write(temp_.path() + "/nan");
  expect_failed("nan", Code::bad_file, "element 0 is nan");
  EXPECT_EQ(registry().snapshot().used_bytes, 0U);
  EXPECT_EQ(registry().snapshot().loads_failed, 1);
}

TEST_F(Registry, DestructionDuringLoads) {
  write_many(10);
  for (int i = 0; i < 10; ++i) registry().acquire(fmt::format("a{}", i));
  registry_.reset();
}

// Random traffic over names that come, fail, change and vanish, with every count checked each step.
TEST_F(Registry, RandomTrafficKeepsTheCounts) {
  options_.budget_bytes = 3 * kOne;
  options_.max_failures = 4;
  write_many(6);
  std::mt19937 random(7);
  const auto below = [&](uint32_t n) { return static_cast<int>(random() % n); };
  std::vector<AdapterHandle> held;
  int64_t served = 0;
  for (int step = 0; step < 4000; ++step) {
    const std::string name = fmt::format("a{}", below(9));  // a6, a7, a8 do not exist
    const int action = below(100);
    if (action < 45 && held.size() < 12) held.push_back(registry().acquire(name));
    if (action >= 45 && action < 90 && !held.empty()) {
      const auto at = held.begin() + below(static_cast<uint32_t>(held.size()));
      served += state(*at) == AdapterState::ready ? 1 : 0;
      registry().release(*at);
      held.erase(at);
    }
    if (action >= 90 && action < 92) registry().reload(name);
    if (action == 93) write("a0", static_cast<float>(step));
    if (action >= 94) now_ += 700ms * below(20);
    if (action % 8 == 0) std::this_thread::sleep_for(50us);
    registry().poll();
    registry().check_integrity();
  }
  for (const AdapterHandle h : held) registry().release(h);
  registry().check_integrity();
  EXPECT_GT(served, 100);
  EXPECT_GT(registry().snapshot().evictions, 10);
  EXPECT_GT(registry().snapshot().loads_failed, 10);
}

}  // namespace
}  // namespace lorry
