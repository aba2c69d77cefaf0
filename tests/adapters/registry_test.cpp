// The registry with local adapters: names, loads, failures, reloads.
#include "adapters/registry_test_base.h"

namespace lorry {
namespace {

using namespace std::chrono_literals;
using test::Draft;
using test::kOne;

using Registry = test::RegistryTest;

TEST_F(Registry, loads_a_name_and_keeps_it_for_the_next) {
  write("sql");
  const AdapterHandle h = registry().acquire("sql");
  EXPECT_EQ(state(h), AdapterState::loading);
  settle(h);
  const Adapter* loaded = adapter(h);
  ASSERT_NE(loaded, nullptr);
  EXPECT_EQ(loaded->sites().size(), 1U);
  EXPECT_GE(wakes_, 1) << "the engine is told";
  end(h);
  const AdapterHandle again = registry().acquire("sql");
  EXPECT_EQ(registry().pin(again), loaded) << "still in memory";
  EXPECT_EQ(loads(), 1);
  end(again);
}

TEST_F(Registry, registered_names_need_no_root) {
  const std::string path = write("x");
  options_.root.clear();
  registry().register_name("org/tuned", path);
  EXPECT_EQ(entry("org/tuned").state, AdapterState::absent);
  EXPECT_EQ(entry("org/tuned").idle_seconds, -1);
  const AdapterHandle h = run("org/tuned");
  now_ += 3s;
  const AdapterSnapshot::Entry e = entry("org/tuned");
  EXPECT_TRUE(e.registered);
  EXPECT_EQ(e.state, AdapterState::device);
  EXPECT_EQ(e.claims, 1);
  EXPECT_EQ(e.hits, 1);
  EXPECT_EQ(e.idle_seconds, 3);
  EXPECT_EQ(e.bytes, 128U) << "exactly its own: A and B";
  EXPECT_EQ(e.max_rank, 2);
  EXPECT_EQ(e.sites, 1U);
  EXPECT_EQ(e.digest, to_hex(digest(h)));
  end(h);
  expect_failed("x", Code::not_found, "adapter 'x' not found");
  EXPECT_THROW(registry().register_name("../x", path), Error);
  EXPECT_TRUE(registry().unregister_name("org/tuned"));
  EXPECT_FALSE(registry().unregister_name("org/tuned"));
  EXPECT_EQ(used(), 0) << "its memory is free";
  expect_failed("org/tuned", Code::not_found, "not found");
}

TEST_F(Registry, F1_not_found_is_remembered_for_a_while) {
  expect_failed("none", Code::not_found, "none");
  EXPECT_EQ(loads(), 1);
  write("none");
  now_ += 29s;
  expect_failed("none", Code::not_found, "none");
  EXPECT_EQ(loads(), 1) << "no file was touched";
  now_ += 1s;
  end(run("none"));
  EXPECT_EQ(loads(), 2);
}

TEST_F(Registry, F1_remembered_failures_are_bounded) {
  options_.max_failures = 8;
  for (int i = 0; i < 50; ++i) expect_failed(fmt::format("none{}", i), Code::not_found, "none");
  registry().poll();
  EXPECT_LE(registry().snapshot().entries.size(), 8U);
}

TEST_F(Registry, F2_F3_F4_failures_carry_their_sentence) {
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

TEST_F(Registry, F6_names_outside_the_grammar_are_refused_at_once) {
  for (const char* name : {"../../x", "/etc", "~", "%2e%2e", "a\r\n"}) {
    const AdapterHandle h = registry().acquire(name);
    ASSERT_EQ(state(h), AdapterState::failed);
    EXPECT_EQ(registry().status(h).error->code(), Code::invalid_argument);
    registry().release(h);
  }
  EXPECT_EQ(loads(), 0);
  EXPECT_TRUE(registry().snapshot().entries.empty());
  std::filesystem::create_directory_symlink("/", temp_.path() + "/out");
  expect_failed("out", Code::invalid_argument, "out of the adapter root");
}

TEST_F(Registry, F8_larger_than_all_room_is_refused_before_reading) {
  options_.device_bytes = kOne - 1;
  write("a");
  ops_.shut();  // packing would never return
  expect_failed("a", Code::over_capacity, "takes 128 bytes of adapter memory, which holds 4095");
  EXPECT_EQ(used(), 0);
}

TEST_F(Registry, F9_a_thousand_claims_share_one_load) {
  write("cold");
  ops_.shut();
  std::vector<AdapterHandle> claims;
  for (int i = 0; i < 1000; ++i) claims.push_back(registry().acquire("cold"));
  until([&] { return used() == kOne; });
  ops_.await_packing(1);
  for (size_t i = 0; i < 500; ++i) registry().release(claims[i]);
  ops_.open();
  for (size_t i = 500; i < 1000; ++i) settle(claims[i]);
  for (size_t i = 500; i < 1000; ++i) end(claims[i]);
  EXPECT_EQ(loads(), 1);
  EXPECT_EQ(registry().snapshot().loads_done, 1);
}

TEST_F(Registry, F10_ten_adapters_over_two_places_all_answer) {
  options_.device_bytes = 2 * kOne;
  write_many(10);
  std::vector<AdapterHandle> open;
  for (int i = 0; i < 10; ++i) open.push_back(registry().acquire(fmt::format("a{}", i)));
  int served = 0;
  until([&] {
    EXPECT_LE(registry().snapshot().contents, 2);
    std::erase_if(open, [&](AdapterHandle h) {
      if (registry().pin(h) == nullptr) return false;
      end(h);
      ++served;
      return true;
    });
    return open.empty();
  });
  EXPECT_EQ(served, 10);
  EXPECT_EQ(registry().snapshot().memory.device.evictions, 8);
}

TEST_F(Registry, waits_for_room_and_never_evicts_what_runs) {
  options_.device_bytes = 2 * kOne;
  write_many(3);
  const AdapterHandle a0 = run("a0");
  const AdapterHandle a1 = run("a1");
  const AdapterHandle a2 = registry().acquire("a2");
  until_waiting(1);
  EXPECT_EQ(state(a2), AdapterState::loading);
  end(a1);
  settle(a2);
  EXPECT_EQ(entry("a1").name, "") << "it had to go, and is no registered name";
  EXPECT_EQ(entry("a0").state, AdapterState::device);
  end(a0);
  end(a2);
}

TEST_F(Registry, evicts_the_least_recently_used) {
  options_.device_bytes = 3 * kOne;
  write_many(4);
  for (const char* name : {"a0", "a1", "a2", "a0", "a3"}) end(run(name));
  EXPECT_EQ(entry("a0").state, AdapterState::device);
  EXPECT_EQ(entry("a1").name, "");
  EXPECT_EQ(entry("a2").state, AdapterState::device);
}

TEST_F(Registry, withdrawn_claims_leave_nothing_behind) {
  options_.device_bytes = kOne;
  write_many(40);
  const AdapterHandle held = run("a0");
  std::vector<AdapterHandle> claims;
  for (int i = 1; i < 40; ++i) claims.push_back(registry().acquire(fmt::format("a{}", i)));
  idle();
  for (const AdapterHandle h : claims) registry().release(h);
  until([&] { return registry().snapshot().entries.size() == 1; });
  EXPECT_EQ(state(held), AdapterState::device);
  EXPECT_EQ(used(), kOne);
  end(held);
}

TEST_F(Registry, equal_content_is_kept_once) {
  write("one");
  write("two");
  const AdapterHandle one = run("one");
  const AdapterHandle two = run("two");
  EXPECT_EQ(adapter(one), adapter(two));
  EXPECT_EQ(registry().content(one), registry().content(two));
  EXPECT_EQ(used(), kOne);
  end(one);
  EXPECT_EQ(state(two), AdapterState::device);
  end(two);
}

TEST_F(Registry, F12_a_reload_leaves_running_requests_alone) {
  write("a", 1);
  const AdapterHandle old = run("a");
  const Digest before = digest(old);
  write("a", 2);
  registry().reload("a");
  const AdapterHandle fresh = run("a");
  EXPECT_EQ(digest(old), before);
  EXPECT_NE(digest(fresh), before);
  EXPECT_EQ(registry().snapshot().contents, 2);
  registry().reload("a");  // nothing changed in the file
  const AdapterHandle same = run("a");
  EXPECT_EQ(adapter(same), adapter(fresh));
  for (const AdapterHandle h : {old, fresh, same}) end(h);
  EXPECT_EQ(registry().snapshot().contents, 1) << "the old content went with its last request";
}

TEST_F(Registry, F12_a_reload_while_loading_starts_anew) {
  write("a", 1);
  ops_.shut();
  const AdapterHandle first = registry().acquire("a");
  until([&] { return used() == kOne; });
  ops_.await_packing(1);  // the old content has been read
  write("a", 2);
  registry().reload("a");
  const AdapterHandle second = registry().acquire("a");
  ops_.open();
  settle(first);
  settle(second);
  EXPECT_NE(adapter(first), adapter(second));
  end(first);
  end(second);
}

TEST_F(Registry, F12_a_name_is_published_only_when_its_folder_loads) {
  write("a", 1);
  const AdapterHandle old = run("a");
  const std::string other = write("elsewhere", 2);
  const AdapterHandle fresh = registry().acquire_folder("a", other);
  settle(fresh);
  EXPECT_EQ(adapter(old), adapter(run("a"))) << "not yet";
  registry().publish(fresh);
  const AdapterHandle next = run("a");
  EXPECT_EQ(adapter(next), adapter(fresh));
  EXPECT_NE(adapter(next), adapter(old));
  EXPECT_TRUE(registry().is_registered("a"));
  write_file(write("bad") + "/adapter_config.json", "{");
  const AdapterHandle bad = registry().acquire_folder("a", temp_.path() + "/bad");
  settle(bad);
  EXPECT_EQ(state(bad), AdapterState::failed);
  registry().release(bad);
  EXPECT_EQ(adapter(run("a")), adapter(fresh));
}

TEST_F(Registry, F11_bad_loads_do_not_hurt_good_ones) {
  write_many(4);
  for (int i = 0; i < 25; ++i) {
    write_file(write(fmt::format("bad{}", i)) + "/adapter_config.json", "{");
  }
  for (int i = 0; i < 25; ++i) {
    const AdapterHandle b = registry().acquire(fmt::format("bad{}", i));
    end(run(fmt::format("a{}", i % 4)));
    settle(b);
    EXPECT_EQ(state(b), AdapterState::failed);
    registry().release(b);
  }
  EXPECT_EQ(used(), 4 * kOne) << "failures give their room back";
}

TEST_F(Registry, lorax_fault_8_a_failed_load_returns_its_memory_and_is_tried_again) {
  options_.device_bytes = kOne;
  Draft draft;
  draft.config = R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4})";
  draft.pair("model.layers.0.self_attn.q_proj", 2, 8, 8);
  draft.tensors.begin()->second.second[0] = std::numeric_limits<float>::quiet_NaN();
  draft.write(temp_.path() + "/nan");
  write("good");
  for (int i = 0; i < 5; ++i) {
    expect_failed("nan", Code::bad_file, "element 0 is nan");
    EXPECT_EQ(used(), 0) << "the good one had to go, and the bad one is gone too";
    end(run("good"));
    now_ += 30s;
  }
  EXPECT_EQ(registry().snapshot().loads_failed, 5);
  write("nan");
  end(run("nan"));
}

TEST_F(Registry, destruction_during_loads) {
  write_many(10);
  for (int i = 0; i < 10; ++i) registry().acquire(fmt::format("a{}", i));
  registry().poll();
  registry_.reset();
}

}  // namespace
}  // namespace lorry
