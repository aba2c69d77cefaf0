// What the tests of the registry share: real (tiny) folders and loader threads, a clock that only
// the test moves, and requests that pin and unpin as the engine's do. What loads when is steered by
// a gate in the packing.
#pragma once
#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "adapters/registry.h"
#include "adapters/support.h"

namespace lorry::test {

using namespace std::chrono_literals;

constexpr size_t kOne = 4096;  // bytes of memory that one of these adapters takes

class RegistryTest : public testing::Test {
 protected:
  RegistryTest() : table_(mixtral_sites({1, 2, 8, 8, 4, 6, 10})) {
    options_.root = temp_.path();
    options_.now = [this] { return now_; };
    options_.wake = [this] { ++wakes_; };
    options_.device_bytes = 4 * kOne;
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
  const Adapter* adapter(AdapterHandle h) { return registry().status(h).adapter; }
  Digest digest(AdapterHandle h) { return adapter(h)->digest(); }

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
  // Long enough for what could be done to be done.
  void idle() {
    for (int i = 0; i < 20; ++i) {
      std::this_thread::sleep_for(500us);
      registry().poll();
      registry().check_integrity();
    }
  }
  // Until `n` adapters, since the start, have found no room when they were first in line.
  void until_waiting(int64_t n) {
    until([&] { return registry().snapshot().memory.waits == n; });
  }
  // Until it runs: pinned, or failed.
  void settle(AdapterHandle h) {
    until([&] { return state(h) == AdapterState::failed || registry().pin(h) != nullptr; });
  }
  // Claims and pins it.
  AdapterHandle run(const AdapterRef& ref) {
    const AdapterHandle h = registry().acquire(ref);
    settle(h);
    EXPECT_EQ(state(h), AdapterState::device) << ref.label();
    return h;
  }
  void end(AdapterHandle h) {
    registry().unpin(h);
    registry().release(h);
    registry().check_integrity();
  }
  void expect_failed(const AdapterRef& ref, Code code, const std::string& part) {
    const AdapterHandle h = registry().acquire(ref);
    settle(h);
    ASSERT_EQ(state(h), AdapterState::failed) << ref.label();
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
  int64_t used() { return registry().snapshot().memory.device.used; }
  int64_t loads() { return registry().snapshot().loads_started; }

  TempFolder temp_;
  PackOps ops_;
  SiteTable table_;
  std::chrono::steady_clock::time_point now_{1h};
  std::atomic<int> wakes_{0};
  AdapterRegistry::Options options_;
  std::optional<AdapterRegistry> registry_;  // last: its threads use the others
};

}  // namespace lorry::test
