// 1.2 million random steps, each checked against the fake KV array and check_integrity().
#include "engine/scheduler_sim.h"

#include <gtest/gtest.h>

namespace lorry {
namespace {

constexpr int64_t kStepsPerSeed = 60'000;

// What a configuration is for: a run that does not do it tests nothing.
struct Expect {
  bool preempts = false, hits = false, evicts = false, drafts = false, slides = false;
};

struct Case {
  SimConfig config;
  Expect expect;
};

std::vector<Case> cases() {
  return {
      {{.name = "roomy", .limits = {32, 8, 16}, .n_blocks = 200}, {.hits = true, .evicts = true}},
      {{.name = "tight", .limits = {32, 8, 16}, .n_blocks = 16, .arrivals = 60},
       {.preempts = true, .hits = true, .evicts = true}},
      {{.name = "one_fits", .limits = {24, 6, 6}, .n_blocks = 8, .arrivals = 60},
       {.preempts = true, .hits = true, .evicts = true}},
      {{.name = "one_row_each", .limits = {4, 4, 4}, .n_blocks = 10, .max_live = 12},
       {.preempts = true, .hits = true, .evicts = true}},
      {{.name = "chunks", .limits = {64, 8, 8, 7}, .n_blocks = 20},
       {.preempts = true, .hits = true, .evicts = true}},
      {{.name = "many_tenants",
        .limits = {40, 10, 20, 0, 0, true, 5},
        .n_blocks = 24,
        .n_tenants = 30,
        .max_live = 40,
        .arrivals = 80},
       {.preempts = true, .hits = true, .evicts = true}},
      {{.name = "many_adapters",
        .limits = {16, 10, 12, 0, 0, true, 9, 4},
        .n_blocks = 24,
        .n_tenants = 3,
        .n_adapters = 12,
        .max_live = 40,
        .arrivals = 80,
        .prompt_logits = 40},
       {.preempts = true, .hits = true, .evicts = true}},
      {{.name = "window", .limits = {32, 8, 16, 0, 20}, .n_blocks = 12, .arrivals = 60},
       {.preempts = true, .hits = true, .evicts = true, .slides = true}},
      {{.name = "window_of_one_and_drafts",
        .limits = {32, 6, 32, 0, 1},
        .n_blocks = 12,
        .max_drafts = 5,
        .arrivals = 60},
       {.hits = true, .evicts = true, .drafts = true, .slides = true}},
      {{.name = "drafts", .limits = {48, 8, 32}, .n_blocks = 18, .max_drafts = 20, .arrivals = 60},
       {.preempts = true, .hits = true, .evicts = true, .drafts = true}},
      {{.name = "no_prefix_cache",
        .limits = {32, 8, 16, 0, 33, false},
        .n_blocks = 16,
        .max_drafts = 3,
        .arrivals = 60},
       {.preempts = true, .drafts = true, .slides = true}},
  };
}

class SchedulerSim : public testing::TestWithParam<std::tuple<Case, uint32_t>> {};

TEST_P(SchedulerSim, EveryRowReadsTheKvOfItsOwnPrefix) {
  const auto& [c, seed] = GetParam();
  Sim sim(c.config, seed);
  sim.run(kStepsPerSeed);
  const SimCounts& n = sim.counts();
  EXPECT_GE(n.steps, kStepsPerSeed);
  EXPECT_GT(n.finished, 100);
  EXPECT_GT(n.cancelled, 100);
  EXPECT_EQ(n.preempted > 50, c.expect.preempts) << n.preempted;
  EXPECT_EQ(n.hit_tokens > 1000, c.expect.hits) << n.hit_tokens;
  EXPECT_EQ(sim.scheduler().pool().n_evicted() > 100, c.expect.evicts)
      << sim.scheduler().pool().n_evicted();
  EXPECT_EQ(n.drafts_run > 1000 && n.drafts_rejected > 100 && n.drafts_dropped > 100,
            c.expect.drafts);
  EXPECT_EQ(n.slid > 1000, c.expect.slides);
  EXPECT_GT(n.parked_waiting, 100);
  EXPECT_GT(n.parked_running, 100);
  EXPECT_EQ(n.parked_preempted > 5, c.expect.preempts) << n.parked_preempted;
}

INSTANTIATE_TEST_SUITE_P(All, SchedulerSim,
                         testing::Combine(testing::ValuesIn(cases()), testing::Values(1U, 2U)),
                         [](const auto& test) {
                           return std::get<0>(test.param).config.name + "_" +
                                  std::to_string(std::get<1>(test.param));
                         });

}  // namespace
}  // namespace lorry
