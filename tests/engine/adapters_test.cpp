// Many adapters on one engine: more than fit, names that come and go, loads at start. Answers must
// be those of an engine that has room for all, bit for bit.
#include <filesystem>
#include <future>
#include <thread>

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/files.h"
#include "engine/harness.h"

namespace lorry::test {
namespace {

const std::vector<std::string> kNames = {"attn-r8", "experts-r8", "lm-head-r8", "router-r4"};

EngineOptions options() {
  EngineOptions o = golden_options("mixtral-base", kNames);
  o.dtype = Dtype::bf16;
  return o;
}

// One for each adapter and one for the base model, three times over.
std::vector<Request> requests(int32_t n_tokens) {
  std::vector<Request> all;
  for (int32_t i = 0; i < 15; ++i) {
    const size_t which = static_cast<size_t>(i) % 5;
    const std::string name = which < kNames.size() ? kNames[which] : "";
    all.push_back(greedy_request({{1, 5, 9 + i, 12, 33, 7}, name}, n_tokens));
    all.back().want_logits = i % 2 == 0;
    all.back().tenant = static_cast<uint64_t>(i % 2);
  }
  return all;
}

struct Answers {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<float>> logits;
};

Answers answers(TestEngine& engine, int32_t n_tokens) {
  Answers all;
  for (const auto& sink : engine.run(requests(n_tokens))) {
    EXPECT_EQ(sink->finish->reason, FinishReason::length)
        << (sink->finish->error ? sink->finish->error->what() : "");
    EXPECT_FALSE(sink->out_of_order);
    all.tokens.push_back(sink->ids());
    all.logits.push_back(sink->logits);
  }
  return all;
}

size_t largest_image() {
  TestEngine engine(options());
  answers(engine, 1);
  size_t largest = 0;
  for (const auto& e : engine->adapters().entries) largest = std::max(largest, e.bytes);
  return largest;
}

// How long a turn is follows what steps and loads take here, so this may need a few rounds.
void expect_parked_and_equal(TestEngine& engine, const Answers& expected) {
  for (int round = 0; round < 50 && engine->stats().parked == 0; ++round) {
    const Answers got = answers(engine, 200);
    EXPECT_EQ(got.tokens, expected.tokens);
    EXPECT_EQ(got.logits, expected.logits);
  }
  EXPECT_GT(engine->stats().parked, 0);
}

TEST(EngineAdapters, requests_that_step_aside_give_the_same_bits) {
  TestEngine roomy(options());
  const Answers expected = answers(roomy, 200);
  EXPECT_EQ(roomy->stats().parked, 0);
  const auto one = static_cast<int64_t>(largest_image());
  for (const int64_t host : {int64_t{0}, 8 * one}) {
    EngineOptions o = options();
    o.adapter_memory = one + 4096;  // hardly more than one at a time
    o.adapter_host_memory = host;
    o.adapter_cycle_seconds = 0.002;
    o.kv_tokens = 512;  // and preemptions besides
    o.max_batch_tokens = 128;
    TestEngine tight(o);
    expect_parked_and_equal(tight, expected);
    const AdapterSnapshot s = tight->adapters();
    EXPECT_GT(s.memory.rotations, 0);
    EXPECT_EQ(s.memory.active, 0);
    if (host > 0) {
      EXPECT_EQ(s.loads_started, 4) << "each was read once";
    }
    for (const auto& e : s.entries) EXPECT_EQ(e.claims, 0) << e.name;
    EXPECT_EQ(tight->stats().adapters_device.bytes, s.memory.device.size);
    EXPECT_EQ(tight->stats().adapters_device.evictions, s.memory.device.evictions);
    EXPECT_GT(tight->stats().adapters_device.evictions, 0);
    EXPECT_EQ(tight->stats().adapters_host.loads, s.memory.host.fills);
    EXPECT_EQ(tight->stats().kv_blocks_free, tight->stats().kv_blocks);
  }
}

TEST(EngineAdapters, one_active_adapter_at_a_time_gives_the_same_bits) {
  TestEngine roomy(options());
  const Answers expected = answers(roomy, 200);
  EngineOptions o = options();
  o.max_active_adapters = 1;
  o.adapter_host_memory = o.adapter_memory;  // so that loads onto the device are but copies
  o.adapter_cycle_seconds = 0.002;
  TestEngine tight(o);
  expect_parked_and_equal(tight, expected);
}

TEST(EngineAdapters, who_waits_for_an_adapter_can_leave) {
  EngineOptions o = options();
  o.adapter_memory = static_cast<int64_t>(largest_image());
  o.adapter_cycle_seconds = 0.001;
  TestEngine engine(o);
  std::vector<std::shared_ptr<Collector>> sinks;
  std::vector<RequestId> ids;
  for (int round = 0; round < 4; ++round) {
    for (Request& r : requests(200)) {
      auto sink = std::make_shared<Collector>(engine->info().spec.vocab);
      r.sink = sink;
      sinks.push_back(sink);
      ids.push_back(engine->submit(std::move(r)));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    for (const RequestId id : ids) engine->cancel(id);
  }
  for (auto& s : sinks) s->wait();
  const AdapterSnapshot s = engine->adapters();
  for (const auto& e : s.entries) EXPECT_EQ(e.claims, 0) << e.name;
  EXPECT_EQ(s.memory.active, 0);
  for (int i = 0; i < 1000 && engine->stats().waiting_for_adapter > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // until the next step's count
  }
  EXPECT_EQ(engine->stats().waiting_for_adapter, 0);
}

// ---- names ----

std::optional<Error> load(TestEngine& engine, const std::string& name, const std::string& folder,
                          bool in_place = false) {
  std::promise<std::optional<Error>> done;
  engine->load_adapter(
      {name, golden("mixtral-base/adapters/" + folder), in_place},
      [&](const Error* e) { done.set_value(e == nullptr ? std::nullopt : std::optional(*e)); });
  return done.get_future().get();
}

AdapterSnapshot::Entry entry(TestEngine& engine, const std::string& name) {
  for (const auto& e : engine->adapters().entries) {
    if (e.name == name) return e;
  }
  return {};
}

TEST(EngineAdapters, names_are_loaded_replaced_and_unloaded) {
  EngineOptions o = options();
  o.adapters.clear();
  TestEngine engine(o);
  const Prompt prompt{{1, 5, 9, 12, 33, 7}, "mine"};
  EXPECT_FALSE(load(engine, "mine", "attn-r8"));
  EXPECT_EQ(entry(engine, "mine").state, AdapterState::device);
  EXPECT_TRUE(entry(engine, "mine").registered);
  const auto first = engine.run({greedy_request(prompt, 8)})[0];

  const auto again = load(engine, "mine", "experts-r8");
  ASSERT_TRUE(again);
  EXPECT_EQ(again->code(), Code::invalid_argument);
  EXPECT_NE(std::string(again->what()).find("has already been loaded"), std::string::npos);
  const auto broken = load(engine, "mine", "no-such-folder", true);
  ASSERT_TRUE(broken);
  EXPECT_EQ(broken->code(), Code::not_found);
  EXPECT_EQ(engine.run({greedy_request(prompt, 8)})[0]->ids(), first->ids()) << "nothing changed";

  EXPECT_FALSE(load(engine, "mine", "experts-r8", true));
  EXPECT_FALSE(load(engine, "theirs", "experts-r8"));
  EXPECT_EQ(entry(engine, "mine").digest, entry(engine, "theirs").digest);
  const auto bad_name = load(engine, "../x", "attn-r8");
  ASSERT_TRUE(bad_name);
  EXPECT_EQ(bad_name->code(), Code::invalid_argument);

  engine->unload_adapter("mine");
  EXPECT_THROW(engine->unload_adapter("mine"), Error);
  const auto gone = engine.run({greedy_request(prompt, 8)})[0];
  ASSERT_EQ(gone->finish->reason, FinishReason::failed);
  EXPECT_EQ(gone->finish->error->code(), Code::not_found);
}

// Of an adapter whose values lie beyond float16 the requests fail, and say so; nobody else's do.
TEST(EngineAdapters, F4_what_is_too_large_for_float16_harms_its_own_requests_alone) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::temp_directory_path() / ("lorry-loud-" + std::to_string(getpid()));
  fs::remove_all(folder);
  fs::copy(golden("mixtral-base/adapters/attn-r8"), folder);
  std::string config = read_file(folder / "adapter_config.json");
  const std::string alpha = "\"lora_alpha\": 16";
  config.replace(config.find(alpha), alpha.size(), "\"lora_alpha\": 1e8");
  write_file(folder / "adapter_config.json", config);
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16}) {
    EngineOptions o = options();
    o.dtype = dtype;
    o.adapters.push_back({"loud", folder.string()});
    TestEngine engine(o);
    const std::vector<int32_t> prompt{1, 5, 9, 12, 33, 7};
    const auto alone = engine.run({greedy_request({prompt, "attn-r8"}, 20)})[0];
    const auto got =
        engine.run({greedy_request({prompt, "loud"}, 20), greedy_request({prompt, "attn-r8"}, 20)});
    EXPECT_EQ(got[1]->ids(), alone->ids());
    if (dtype == Dtype::bf16) {
      EXPECT_EQ(got[0]->finish->reason, FinishReason::length);
      continue;
    }
    ASSERT_EQ(got[0]->finish->reason, FinishReason::failed);
    EXPECT_NE(std::string(got[0]->finish->error->what()).find("too large for --dtype float16"),
              std::string::npos)
        << got[0]->finish->error->what();
    EXPECT_EQ(engine->stats().nan_total, 1U);
  }
  fs::remove_all(folder);
}

TEST(EngineAdapters, F12_requests_in_flight_finish_on_the_old_version) {
  EngineOptions o = options();
  TestEngine engine(o);
  const Prompt prompt{{1, 5, 9, 12, 33, 7}, "attn-r8"};
  const auto expected = engine.run({greedy_request(prompt, 200)})[0];
  const auto running = engine.start(greedy_request(prompt, 200));
  EXPECT_FALSE(load(engine, "attn-r8", "experts-r8", true));
  const auto fresh = engine.run({greedy_request(prompt, 200)})[0];
  running->wait();
  EXPECT_EQ(running->ids(), expected->ids());
  EXPECT_NE(fresh->ids(), expected->ids());
  const auto base = engine.run({greedy_request({prompt.tokens, "experts-r8"}, 200)})[0];
  EXPECT_EQ(fresh->ids(), base->ids());
}

TEST(EngineAdapters, the_preloaded_adapters_are_there_at_start) {
  EngineOptions o = options();
  o.preloaded_adapters = {"attn-r8", "experts-r8"};
  TestEngine engine(o);
  EXPECT_EQ(entry(engine, "attn-r8").state, AdapterState::device);
  EXPECT_EQ(entry(engine, "experts-r8").state, AdapterState::device);
  EXPECT_EQ(entry(engine, "router-r4").state, AdapterState::absent);
}

TEST(EngineAdapters, a_preloaded_adapter_that_fails_fails_the_start) {
  EngineOptions o = options();
  o.preloaded_adapters = {"attn-r8", "no-such-adapter"};
  try {
    TestEngine engine(o);
    ADD_FAILURE() << "started";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::not_found);
    EXPECT_NE(std::string(e.what()).find("\"no-such-adapter\" cannot be loaded at start"),
              std::string::npos)
        << e.what();
  }
}

TEST(EngineAdapters, the_memory_plan_shows_both_tiers) {
  EngineOptions o = options();
  o.adapter_memory = 3'072'000;
  o.adapter_host_memory = 5'120'000;
  TestEngine engine(o);
  const std::string text = engine->memory().to_text();
  EXPECT_NE(text.find("adapters 3.1 MB (host tier 5.1 MB)"), std::string::npos) << text;
  const AdapterSnapshot s = engine->adapters();
  EXPECT_EQ(s.memory.device.size, 3'072'000);
  EXPECT_EQ(s.memory.host.size, 5'120'000);
}

}  // namespace
}  // namespace lorry::test
