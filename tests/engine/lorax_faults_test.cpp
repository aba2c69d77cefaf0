// Faults of LoRAX that users met, as they show at an engine. Each test is named after the row of
// the reference table that it answers; the other rows are in the folders where they are at home.
#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <thread>

#include <gtest/gtest.h>
#include <unistd.h>

#include "engine/harness.h"

namespace lorry::test {
namespace {

EngineOptions options() {
  EngineOptions o = golden_options("mixtral-base", {"attn-r8", "experts-r8"});
  o.max_batch_tokens = 16;
  o.max_sequences = 8;
  o.max_logit_rows = 16;
  return o;
}

std::vector<int32_t> prompt(int32_t n, int32_t salt) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < n; ++i) ids.push_back((i * 37 + salt) % 250);
  return ids;
}

// A prompt of many steps is cancelled in each of them; whoever comes next with the same prompt gets
// what a fresh engine gives.
TEST(LoraxFaults, lorax_fault_13_blocks_of_an_ended_prefill_are_never_wrong) {
  const Prompt p{prompt(200, 3), "attn-r8"};
  TestEngine fresh(options());
  const auto want = fresh.run({greedy_request(p, 6)})[0]->ids();
  TestEngine engine(options());
  engine.run({greedy_request({{1}, "attn-r8"}, 1)});  // the adapter is there
  int cancelled = 0;
  for (int i = 0; i < 40; ++i) {
    Request r = greedy_request(p, 6);
    const auto sink = std::make_shared<Collector>(engine->info().spec.vocab);
    r.sink = sink;
    const RequestId id = engine->submit(std::move(r));
    const int64_t steps = engine->stats().steps;
    while (engine->stats().steps < steps + i % 13 && engine->stats().running > 0) {
    }
    engine->cancel(id);
    sink->wait();
    cancelled += sink->finish->reason == FinishReason::cancelled ? 1 : 0;
    EXPECT_EQ(engine.run({greedy_request(p, 6)})[0]->ids(), want) << i;
  }
  EXPECT_GT(cancelled, 0);
  EXPECT_GT(engine->stats().prefix_hits, 0);
}

TEST(LoraxFaults, lorax_fault_14_penalties_temperature_and_seeds_know_no_batch_mates) {
  TestEngine engine(options());
  std::vector<Request> all;
  for (int32_t i = 0; i < 8; ++i) {
    Request r = greedy_request({prompt(9, i), i % 3 == 0 ? "" : "attn-r8"}, 12);
    r.sampling.logprobs = true;
    r.sampling.sample = i % 2 == 1;
    r.sampling.temperature = 0.5F + 0.2F * static_cast<float>(i);
    r.sampling.seed = static_cast<uint64_t>(i / 2);
    r.sampling.repetition_penalty = i % 4 == 0 ? 1.3F : 1.0F;
    r.sampling.frequency_penalty = i % 4 == 1 ? 0.7F : 0.0F;
    r.sampling.presence_penalty = i % 4 == 2 ? -0.5F : 0.0F;
    all.push_back(std::move(r));
  }
  std::vector<std::vector<int32_t>> alone;
  for (const Request& r : all) alone.push_back(engine.run({r})[0]->ids());
  const auto together = engine.run(all);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(together[i]->ids(), alone[i]) << i;
  // Reversed, with other neighbours in the batch.
  std::vector<Request> reversed(all.rbegin(), all.rend());
  const auto again = engine.run(reversed);
  for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(again[all.size() - 1 - i]->ids(), alone[i]);
}

// A folder that PEFT did not write, broken in one of several ways.
void write_bad(const std::string& folder, int kind) {
  namespace fs = std::filesystem;
  fs::create_directories(folder);
  fs::copy_file(golden("mixtral-base/adapters/attn-r8/adapter_model.safetensors"),
                folder + "/adapter_model.safetensors", fs::copy_options::overwrite_existing);
  const std::string config = folder + "/adapter_config.json";
  switch (kind) {
    case 0:
      std::ofstream(config) << "{";
      return;
    case 1:
      std::ofstream(config) << R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8})";
      return;
    case 2:
      std::ofstream(config) << R"({"peft_type": "LOHA", "r": 8, "lora_alpha": 8})";
      return;
    case 3:
      return;  // no config
    default:
      std::ofstream(config) << R"({"peft_type": "LORA", "r": 8, "lora_alpha": 8})";
      fs::resize_file(folder + "/adapter_model.safetensors", 1000);
  }
}

TEST(Adapters, F11_25_bad_loads_during_good_traffic_fail_nobody_else) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("lorry_F11_" + std::to_string(getpid()));
  std::filesystem::remove_all(folder);
  for (int i = 0; i < 25; ++i) write_bad(folder / ("bad" + std::to_string(i)), i % 5);
  EngineOptions o = options();
  o.adapter_root = folder;
  TestEngine engine(o);
  const Prompt good{prompt(20, 1), "experts-r8"};
  const auto want = engine.run({greedy_request(good, 20)})[0]->ids();

  std::atomic<int> refused{0};
  std::thread culprit([&] {
    for (int i = 0; i < 25; ++i) {
      Request r = greedy_request({{1, 2, 3}, "bad" + std::to_string(i)}, 4);
      const auto sink = engine.start(std::move(r));
      sink->wait();
      refused += sink->finish->reason == FinishReason::failed ? 1 : 0;
    }
  });
  int served = 0;
  while (refused < 25 && served < 2000) {
    const auto got = engine.run({greedy_request(good, 20), greedy_request(good, 20)});
    for (const auto& g : got) {
      EXPECT_EQ(g->finish->reason, FinishReason::length);
      EXPECT_EQ(g->ids(), want);
    }
    served += 2;
  }
  culprit.join();
  EXPECT_EQ(refused, 25);
  EXPECT_EQ(engine->stats().failed, 25);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace lorry::test
