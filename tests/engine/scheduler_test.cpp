#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/scheduler_bench.h"

namespace lorry::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
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

TEST(Scheduler, AnAdapterIsServedFirstInFirstOut) {
  Bench b({.max_batch_tokens = 8, .max_sequences = 2, .max_logit_rows = 8}, 100);
  for (int i = 0; i < 4; ++i) b.add(0, 4, 1);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 4, 1}, Row{2, 0, 4, 1}));
  EXPECT_EQ(b.scheduler.n_waiting(), 2);
  EXPECT_THAT(b.step(), ElementsAre(Row{3, 0, 4, 1}, Row{4, 0, 4, 1}));
  EXPECT_THAT(b.step(), IsEmpty());
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

TEST(Scheduler, WhatComesBeforeAnActivatedAdapterIsSharedWithTheBaseModel) {
  Bench b({.max_batch_tokens = 200, .max_sequences = 4, .max_logit_rows = 4}, 100);
  const auto add = [&](uint8_t adapter, int32_t from, int32_t n_prompt) -> Sequence& {
    Sequence& seq = b.make(0, n_prompt, 1);
    seq.adapter_salt[0] = adapter;
    seq.adapter_from = from;
    b.scheduler.add(seq);
    return seq;
  };
  add(0, kNoAdapter, 100);
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 0, 100, 1}));
  add(1, 40, 100);  // blocks 0 and 1 are the base model's
  EXPECT_THAT(b.step(), ElementsAre(Row{2, 32, 68, 1}));
  add(1, 40, 101);
  EXPECT_THAT(b.step(), ElementsAre(Row{3, 96, 5, 1}));
  add(1, 41, 100);  // the same block, but one more row of it is the base model's
  EXPECT_THAT(b.step(), ElementsAre(Row{4, 32, 68, 1}));
  add(2, 40, 100);
  EXPECT_THAT(b.step(), ElementsAre(Row{5, 32, 68, 1}));
  add(1, 48, 100);  // block 2 ends where the adapter begins
  EXPECT_THAT(b.step(), ElementsAre(Row{6, 48, 52, 1}));
  add(1, 0, 100);
  EXPECT_THAT(b.step(), ElementsAre(Row{7, 0, 100, 1}));
  add(1, 99, 100);
  EXPECT_THAT(b.step(), ElementsAre(Row{8, 96, 4, 1}));
  add(1, kNoAdapter, 100);  // the adapter is not invoked
  EXPECT_THAT(b.step(), ElementsAre(Row{9, 96, 4, 1}));
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
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 10, 10, 10}, Row{2, 0, 19, 0}));
  EXPECT_THAT(b.step(), ElementsAre(Row{1, 20, 5, 5}, Row{2, 19, 1, 1}));
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
}  // namespace lorry::test
