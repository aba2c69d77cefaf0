#include "engine/scheduler.h"

#include <array>
#include <cstdlib>
#include <deque>
#include <numeric>
#include <tuple>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lorry {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Row = std::tuple<uint64_t, int32_t, int32_t, int32_t>;  // id, first, n, n_logits

std::vector<Row> rows(const StepPlan& plan) {
  std::vector<Row> all;
  for (const Chunk& c : plan.chunks) all.emplace_back(c.seq->id, c.first, c.n, c.n_logits);
  return all;
}

// A Scheduler with its sequences; step() does what an engine does.
class Bench {
 public:
  Bench(const SchedulerLimits& limits, int32_t n_blocks) : scheduler(limits, n_blocks) {}

  Sequence& add(uint64_t tenant, int32_t n_prompt, int32_t n_answer = 100, int32_t token = 7) {
    Sequence& seq = make(tenant, n_prompt, n_answer, token);
    scheduler.add(seq);
    return seq;
  }

  Sequence& make(uint64_t tenant, int32_t n_prompt, int32_t n_answer = 100, int32_t token = 7) {
    Sequence& seq = sequences.emplace_back();
    seq.id = sequences.size();
    seq.tenant = tenant;
    seq.tokens.assign(static_cast<size_t>(n_prompt), token);
    seq.n_prompt = n_prompt;
    seq.max_tokens = n_prompt + n_answer;
    return seq;
  }

  // Runs a step; ends who reached max_tokens, appends a token to the others that reached the end.
  std::vector<Row> step() {
    const StepPlan& plan = scheduler.plan();
    scheduler.check_integrity();
    preempted.clear();
    for (const Sequence* seq : plan.preempted) preempted.push_back(seq->id);
    std::vector<Row> done = rows(plan);
    scheduler.commit(plan);
    for (const Chunk& chunk : plan.chunks) {
      Sequence& seq = *chunk.seq;
      if (chunk.end() < seq.n_certain()) continue;
      scheduler.truncate(seq, seq.n_certain());
      seq.tokens.push_back(1);
      if (seq.n_certain() == seq.max_tokens) scheduler.remove(seq);
    }
    scheduler.check_integrity();
    return done;
  }

  Scheduler scheduler;
  std::deque<Sequence> sequences;
  std::vector<uint64_t> preempted;  // of the last step
};

TEST(Scheduler, DecodesComeFirstAndPromptsGetTheRest) {
  Bench b({.max_batch_tokens = 20, .max_sequences = 4, .max_logit_rows = 4}, 100);
  b.add(0, 3);
  b.add(0, 5);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 3, 1}, Row{2, 0, 5, 1}));
  b.add(0, 50);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 3, 1, 1}, Row{2, 5, 1, 1}, Row{3, 0, 18, 0}));
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 4, 1, 1}, Row{2, 6, 1, 1}, Row{3, 18, 18, 0}));
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 5, 1, 1}, Row{2, 7, 1, 1}, Row{3, 36, 14, 1}));
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 6, 1, 1}, Row{2, 8, 1, 1}, Row{3, 50, 1, 1}));
}

TEST(Scheduler, AChunkOfAPromptHasALimit) {
  Bench b({.max_batch_tokens = 40, .max_sequences = 4, .max_logit_rows = 4, .prefill_chunk = 16},
          100);
  b.add(0, 40);
  b.add(0, 10);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 16, 0}, Row{2, 0, 10, 1}));
  EXPECT_THAT(b.step(), ElementsAre(Row{2, 10, 1, 1}, Row{1, 16, 16, 0}));
}

TEST(Scheduler, ATenantIsServedFirstInFirstOut) {
  Bench b({.max_batch_tokens = 8, .max_sequences = 2, .max_logit_rows = 8}, 100);
  for (int i = 0; i < 4; ++i) b.add(0, 4, 1);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 4, 1}, Row{2, 0, 4, 1}));
  EXPECT_EQ(b.scheduler.n_waiting(), 2);
  EXPECT_THAT(b.step(), ElementsAre(Row{3, 0, 4, 1}, Row{4, 0, 4, 1}));
  EXPECT_THAT(b.step(), IsEmpty());
}

TEST(Scheduler, PromptTokensAreSharedEquallyAmongTenants) {
  Bench b({.max_batch_tokens = 50,
           .max_sequences = 40,
           .max_logit_rows = 40,
           .prefix_cache = false,
           .tenant_quantum = 32},
          10'000);
  // Tenant 0 with many requests, 1 with long ones, 2 with short ones.
  for (int i = 0; i < 300; ++i) b.add(0, 40, 1);
  for (int i = 0; i < 10; ++i) b.add(1, 1500, 1);
  for (int i = 0; i < 1500; ++i) b.add(2, 7, 1);
  std::array<int32_t, 3> served{};
  for (int step = 1; step <= 400; ++step) {
    for (const auto& [id, first, n, n_logits] : b.step()) {
      served[static_cast<size_t>(b.sequences[id - 1].tenant)] += n;
    }
    for (const int32_t a : served) {
      for (const int32_t c : served) ASSERT_LE(std::abs(a - c), 32) << "step " << step;
    }
  }
  EXPECT_EQ(std::accumulate(served.begin(), served.end(), 0), 400 * 50);
}

// ceil(m K Q / B) steps, as scheduler.h says, for every W of its own tenant.
TEST(Scheduler, AWaitingSequenceStartsWithinTheBoundWhenThereIsRoom) {
  const int32_t quantum = 20, n_tenants = 6, budget = 32;
  for (const int32_t ahead : {0, 1, 19, 20, 21, 100, 333}) {
    Bench b({.max_batch_tokens = budget + 3,
             .max_sequences = 35,
             .max_logit_rows = 35,
             .prefix_cache = false,
             .tenant_quantum = quantum},
            100'000);
    for (int i = 0; i < 3; ++i) b.add(99, 1, 100'000);  // decode all the time
    b.step();
    for (uint64_t tenant = 0; tenant + 1 < n_tenants; ++tenant) b.add(tenant, 50'000, 1);
    for (int i = 0; i < 7; ++i) b.step();
    if (ahead > 0) b.add(5, ahead, 1);
    const Sequence& seq = b.add(5, 10, 1);
    const int32_t turns = (ahead + quantum - 1) / quantum + 1;
    // Tenant 99 has no prompt to compute.
    const int32_t bound = (turns * n_tenants * quantum + budget - 1) / budget;
    int32_t steps = 0;
    while (seq.arrival != 0 && seq.admitted == 0 && steps <= bound) {
      b.step();
      ++steps;
    }
    EXPECT_LE(steps, bound) << ahead;
    EXPECT_GE(steps, bound / 4) << ahead << ": the others have their turns too";
  }
}

// (R + m K Q) L ceil(K Q / B) steps with the smallest pool, while others keep coming.
TEST(Scheduler, AWaitingSequenceStartsWithinTheBoundWhenThereIsNoRoom) {
  const int32_t quantum = 4, n_tenants = 3, length = 64;
  Bench b({.max_batch_tokens = 4,
           .max_sequences = 3,
           .max_logit_rows = 4,
           .prefix_cache = false,
           .tenant_quantum = quantum},
          blocks_for(length));
  const auto flood = [&] {
    for (uint64_t tenant = 0; tenant < 2; ++tenant) {
      while (b.scheduler.n_waiting() < 20) b.add(tenant, 1 + length / 3, length - 1 - length / 3);
    }
  };
  for (int i = 0; i < 50; ++i) {
    flood();
    b.step();
  }
  const Sequence& seq = b.add(2, 30, length - 30);
  const int32_t R = b.scheduler.n_running() + b.scheduler.n_preempted();
  const int64_t bound = int64_t{R + n_tenants * quantum} * length * (n_tenants * quantum);
  int64_t steps = 0, finish = 0;
  for (; seq.admitted == 0 && steps <= bound; ++steps) {
    flood();
    b.step();
  }
  EXPECT_LE(steps, bound);
  for (; seq.state != SequenceState::finished && finish <= 3 * length; ++finish) {
    flood();
    b.step();
  }
  EXPECT_EQ(seq.state, SequenceState::finished) << "who is the oldest ends";
}

TEST(Scheduler, WithoutBlocksTheLastAdmittedGivesWayAndReturnsFirst) {
  Bench b({.max_batch_tokens = 64, .max_sequences = 4, .max_logit_rows = 4, .prefix_cache = false},
          5);
  b.add(0, 30, 30);
  b.add(1, 14, 30);
  EXPECT_EQ(b.step().size(), 2U);  // 2 + 1 blocks
  while (b.preempted.empty()) b.step();
  b.add(1, 14, 1);
  b.add(2, 14, 1);
  EXPECT_THAT(b.preempted, ElementsAre(2));
  const Sequence& second = b.sequences[1];
  EXPECT_EQ(second.state, SequenceState::preempted);
  EXPECT_EQ(second.n_computed, 0);
  EXPECT_THAT(second.blocks, IsEmpty());
  while (second.state == SequenceState::preempted) {
    EXPECT_EQ(b.sequences[2].admitted, 0U) << "slipped past";
    EXPECT_EQ(b.sequences[3].admitted, 0U) << "slipped past";
    b.step();
  }
  for (int i = 0; i < 100; ++i) b.step();
  for (const Sequence& seq : b.sequences) EXPECT_EQ(seq.state, SequenceState::finished) << seq.id;
}

TEST(Scheduler, AdmissionLeavesTheBlocksThatRunningSequencesAreKnownToNeed) {
  Bench b({.max_batch_tokens = 16,
           .max_sequences = 4,
           .max_logit_rows = 4,
           .prefix_cache = false,
           .tenant_quantum = 16},
          7);
  b.add(0, 80, 2);
  b.add(1, 32, 1);
  // The first has 1 block and needs 5 more for its prompt and the next token: 1 of 6 is to be had.
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 16, 0}));
  EXPECT_THAT(b.step(), ElementsAre(Row{2, 0, 16, 0}));
  b.add(2, 16, 1);
  for (int i = 0; i < 10; ++i) {  // 2 needs another block: nothing is left for 3
    if (b.sequences[1].state == SequenceState::finished) break;
    EXPECT_EQ(b.sequences[2].admitted, 0U) << i;
    b.step();
    EXPECT_THAT(b.preempted, IsEmpty());
  }
  EXPECT_EQ(b.sequences[1].state, SequenceState::finished);
}

TEST(Scheduler, FitsSaysWhatThePoolCanHold) {
  const SchedulerLimits limits{.max_batch_tokens = 8, .max_sequences = 1, .max_logit_rows = 1};
  const Scheduler plain(limits, 4);
  EXPECT_TRUE(plain.fits(64));
  EXPECT_FALSE(plain.fits(65));
  EXPECT_FALSE(plain.fits(int64_t{1} << 40));
  SchedulerLimits windowed = limits;
  windowed.window = 34;  // 34 positions touch at most 4 blocks
  EXPECT_TRUE(Scheduler(windowed, 4).fits(1'000'000));
  windowed.window = 50;
  EXPECT_FALSE(Scheduler(windowed, 4).fits(65));
}

TEST(Scheduler, OneSequenceUsesTheWholePool) {
  Bench b({.max_batch_tokens = 64, .max_sequences = 2, .max_logit_rows = 2}, 4);
  const Sequence& seq = b.add(0, 60, 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(b.step().size(), 1U);
  EXPECT_EQ(seq.state, SequenceState::finished);
}

TEST(Scheduler, APrefixIsTakenFromTheCacheButForOneToken) {
  Bench b({.max_batch_tokens = 100, .max_sequences = 4, .max_logit_rows = 64}, 40);
  b.add(0, 48, 1);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 48, 1}));
  b.add(1, 48, 1);  // three full blocks known; the last is computed for its logits
  EXPECT_THAT(b.step(), ElementsAre(Row{2, 32, 16, 1}));
  EXPECT_EQ(b.sequences[1].n_hit, 0) << "its blocks are given back";
  b.add(1, 49, 1);
  EXPECT_THAT(b.step(), ElementsAre(Row{3, 48, 1, 1}));
  b.add(1, 48, 1, 8);  // other tokens
  EXPECT_THAT(b.step(), ElementsAre(Row{4, 0, 48, 1}));
}

TEST(Scheduler, APrefixIsSharedOnlyUnderTheSameSaltAndWhenAllowed) {
  Bench b({.max_batch_tokens = 100, .max_sequences = 4, .max_logit_rows = 64}, 40);
  b.add(0, 40, 1);
  b.step();
  Sequence& other = b.make(0, 40, 1);
  other.cache_salt[31] = 1;
  b.scheduler.add(other);
  EXPECT_THAT(b.step(), ElementsAre(Row{2, 0, 40, 1}));
  Sequence& without = b.make(0, 40, 1);
  without.use_prefix_cache = false;
  b.scheduler.add(without);
  EXPECT_THAT(b.step(), ElementsAre(Row{3, 0, 40, 1}));
  Sequence& scored = b.make(0, 40, 1);
  scored.wants_prompt_logits = true;
  b.scheduler.add(scored);
  EXPECT_THAT(b.step(), ElementsAre(Row{4, 0, 40, 40}));
}

TEST(Scheduler, SequencesThatRunTogetherShareWhatIsComputed) {
  Bench b({.max_batch_tokens = 64, .max_sequences = 4, .max_logit_rows = 4}, 40);
  b.add(0, 70);
  b.add(0, 70);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 64, 0}));
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 64, 6, 1}, Row{2, 64, 6, 1}));
  EXPECT_EQ(b.sequences[1].n_hit, 64);
  EXPECT_EQ(b.sequences[0].blocks[3], b.sequences[1].blocks[3]);
  EXPECT_NE(b.sequences[0].blocks[4], b.sequences[1].blocks[4]);
}

TEST(Scheduler, LogitRowsAreABudgetToo) {
  Bench b({.max_batch_tokens = 64, .max_sequences = 4, .max_logit_rows = 10}, 40);
  Sequence& scored = b.make(0, 25);
  scored.wants_prompt_logits = true;
  b.scheduler.add(scored);
  b.add(1, 20, 100, 8);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 10, 10}));
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 10, 10, 10}));
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 20, 5, 5}, Row{2, 0, 20, 1}));
}

TEST(Scheduler, BlocksOutOfTheWindowAreFreed) {
  Bench b({.max_batch_tokens = 16, .max_sequences = 1, .max_logit_rows = 1, .window = 20}, 3);
  const Sequence& seq = b.add(0, 100, 100);
  for (int i = 0; i < 60; ++i) {
    ASSERT_EQ(b.step().size(), 1U);
    // The next position sees 19 before it.
    const int32_t n_gone = std::max(0, seq.n_computed - 19) / 16;
    for (int32_t j = 0; j < static_cast<int32_t>(seq.blocks.size()); ++j) {
      ASSERT_EQ(seq.blocks[static_cast<size_t>(j)] < 0, j < n_gone) << seq.n_computed;
    }
  }
}

TEST(Scheduler, DraftsRunInTheirChunkAndRejectedOnesGiveTheirBlocksBack) {
  Bench b({.max_batch_tokens = 64, .max_sequences = 2, .max_logit_rows = 64}, 10);
  Sequence& seq = b.add(0, 14);
  b.step();
  seq.tokens.insert(seq.tokens.end(), 20, 5);
  seq.n_draft = 20;
  const StepPlan& plan = b.scheduler.plan();
  EXPECT_THAT(rows(plan), ElementsAre(Row{1, 14, 21, 21}));
  b.scheduler.commit(plan);
  EXPECT_EQ(seq.blocks.size(), 3U);
  EXPECT_EQ(b.scheduler.pool().n_cached(), 0) << "drafts are not registered";
  b.scheduler.truncate(seq, 17);
  EXPECT_EQ(seq.n_computed, 17);
  EXPECT_EQ(seq.blocks.size(), 2U);
  EXPECT_EQ(b.scheduler.pool().n_cached(), 1);
  EXPECT_EQ(b.scheduler.pool().n_free(), 8);
  b.scheduler.check_integrity();
}

TEST(Scheduler, DraftsTakeNeitherRowsNorBlocksFromOthers) {
  Bench b({.max_batch_tokens = 12, .max_sequences = 4, .max_logit_rows = 12, .prefix_cache = false},
          3);
  Sequence& first = b.add(0, 6, 30);
  Sequence& second = b.add(0, 6, 10);
  b.step();
  for (Sequence* seq : {&first, &second}) {
    seq->tokens.insert(seq->tokens.end(), 11, 5);
    seq->n_draft = 11;
  }
  EXPECT_THAT(rows(b.scheduler.plan()), ElementsAre(Row{1, 6, 11, 11}, Row{2, 6, 1, 1}));
  EXPECT_EQ(first.n_draft, 10);
  EXPECT_EQ(second.n_draft, 0);
  EXPECT_EQ(second.tokens.size(), 7U);

  Bench full({.max_batch_tokens = 40, .max_sequences = 2, .max_logit_rows = 40}, 2);
  Sequence& a = full.add(0, 10, 10, 1);
  Sequence& c = full.add(0, 10, 10, 2);
  full.step();
  a.tokens.insert(a.tokens.end(), 9, 5);
  a.n_draft = 9;  // as many as its block holds
  EXPECT_THAT(rows(full.scheduler.plan()), ElementsAre(Row{1, 10, 6, 6}, Row{2, 10, 1, 1}));
  EXPECT_EQ(c.state, SequenceState::running);
}

TEST(Scheduler, ARemovedSequenceLeavesNothingBehind) {
  Bench b({.max_batch_tokens = 16, .max_sequences = 1, .max_logit_rows = 4}, 10);
  Sequence& running = b.add(0, 30);
  Sequence& waiting = b.add(1, 30);
  b.step();
  b.scheduler.remove(waiting);
  b.scheduler.remove(running);
  EXPECT_EQ(b.scheduler.pool().n_free(), 10);
  EXPECT_EQ(b.scheduler.n_waiting() + b.scheduler.n_running(), 0);
  EXPECT_THAT(b.step(), IsEmpty());
}

TEST(Scheduler, AParkedSequenceLeavesItsPrefixAndComesBackAsTheYoungest) {
  Bench b({.max_batch_tokens = 64, .max_sequences = 2, .max_logit_rows = 4}, 10);
  Sequence& parked = b.add(0, 40, 50);
  b.add(0, 10, 50, 8);
  for (int i = 0; i < 10; ++i) b.step();
  EXPECT_EQ(parked.tokens.size(), 50U);
  b.scheduler.park(parked);
  EXPECT_EQ(parked.state, SequenceState::parked);
  EXPECT_EQ(parked.tokens.size(), 50U);
  EXPECT_EQ(parked.n_computed, 0);
  EXPECT_EQ(b.scheduler.n_running() + b.scheduler.n_waiting(), 1);
  EXPECT_EQ(b.scheduler.pool().n_free(), 8);  // the other one has 20 tokens
  b.step();
  EXPECT_EQ(parked.tokens.size(), 50U);
  const Sequence& waiting = b.add(0, 10, 1, 9);
  b.scheduler.add(parked);
  EXPECT_THAT(b.step(), ElementsAre(Row{2, 20, 1, 1}, Row{3, 0, 10, 1}));
  EXPECT_EQ(waiting.state, SequenceState::finished) << "it came first";
  EXPECT_THAT(b.step(), ElementsAre(Row{2, 21, 1, 1}, Row{1, 48, 2, 1}));
  EXPECT_EQ(parked.n_hit, 48) << "three full blocks are still there";
  EXPECT_GT(parked.admitted, b.sequences[1].admitted);
}

TEST(Scheduler, AParkedSequenceIsScoredOnWhereItWas) {
  Bench b({.max_batch_tokens = 64, .max_sequences = 2, .max_logit_rows = 10}, 10);
  Sequence& seq = b.make(0, 25, 10);
  seq.wants_prompt_logits = true;
  b.scheduler.add(seq);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 10, 10}));
  b.scheduler.park(seq);
  EXPECT_THAT(b.step(), IsEmpty());
  b.scheduler.add(seq);
  b.scheduler.park(seq);  // from the queue
  b.scheduler.add(seq);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 20, 10}));
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 20, 5, 5}));
}

TEST(SchedulerDeathTest, MisuseAborts) {
  Bench b({.max_batch_tokens = 16, .max_sequences = 2, .max_logit_rows = 4}, 4);
  EXPECT_DEATH(b.add(0, 60, 10), "at most 70");  // can never run
  Sequence& seq = b.add(0, 10, 2);
  EXPECT_DEATH(b.scheduler.add(seq), "added twice");
  const StepPlan& plan = b.scheduler.plan();
  EXPECT_DEATH(b.scheduler.remove(seq), "within a step");
  EXPECT_DEATH(b.scheduler.park(seq), "within a step");
  EXPECT_DEATH(b.scheduler.plan(), "before commit");
  EXPECT_DEATH(b.scheduler.commit(StepPlan{}), "another plan");
  b.scheduler.commit(plan);
  EXPECT_DEATH(b.scheduler.plan(), "10 of 10 tokens computed");  // nothing was appended
  EXPECT_DEATH(b.scheduler.truncate(seq, 9), "truncate to 9 of 10");
  b.scheduler.park(seq);
  EXPECT_DEATH(b.scheduler.park(seq), "not in the scheduler");
  EXPECT_DEATH(b.scheduler.remove(seq), "not in the scheduler");
  seq.tokens.resize(9);
  EXPECT_DEATH(b.scheduler.add(seq), "prompt of 10, 9 tokens");
  seq.tokens.resize(12);
  b.scheduler.add(seq);
  b.scheduler.remove(seq);
  EXPECT_DEATH(b.scheduler.remove(seq), "not in the scheduler");
}

}  // namespace
}  // namespace lorry
