// Who gets the rows that prompts share, and how long a sequence can wait: the bounds of
// scheduler.h.
#include <array>
#include <cstdlib>
#include <map>
#include <numeric>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/scheduler_bench.h"

namespace lorry::test {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The letters of scheduler.h.
struct Bounds {
  int64_t K = 1, A = 1, Q = 1, q = 1, B = 1;

  int64_t N() const { return ceil_div((A - 1) * q, Q) + 1; }
  int64_t M(int64_t W) const {
    const int64_t m = ceil_div(W, q) + 1;
    return ceil_div(W + m * (A - 1) * q, Q) + 1;
  }
  int64_t oldest_row() const { return ceil_div(N() * K * Q, B); }
  int64_t start(int64_t W) const { return ceil_div(M(W) * K * Q, B); }
  int64_t start_without_room(int64_t R, int64_t L) const {  // w = 1, W = 0
    return (R + M(0) * K * Q + 2 * K * A) * L * oldest_row();
  }
};

TEST(SchedulerFairness, TenantsGetEqualSharesHoweverManyRequestsOrAdaptersTheyHave) {
  Bench b({.max_batch_tokens = 150,
           .max_sequences = 150,
           .max_logit_rows = 150,
           .prefix_cache = false,
           .tenant_quantum = 32,
           .adapter_quantum = 24},
          10'000);
  // Tenant 0 with many requests, 1 with long ones, 2 with short ones, 3 with a hundred adapters.
  for (int i = 0; i < 300; ++i) b.add(0, 40, 1);
  for (int i = 0; i < 10; ++i) b.add(1, 1500, 1);
  for (int i = 0; i < 1500; ++i) b.add(2, 7, 1);
  for (uint64_t i = 0; i < 400; ++i) b.add_for(3, i % 100, 40);
  std::array<int32_t, 4> served{};
  for (int step = 1; step <= 250; ++step) {
    for (const auto& [id, first, n, n_logits] : b.step()) {
      served[static_cast<size_t>(b.sequences[id - 1].tenant)] += n;
    }
    for (const int32_t a : served) {
      for (const int32_t c : served) ASSERT_LE(std::abs(a - c), 32) << "step " << step;
    }
  }
  EXPECT_EQ(std::accumulate(served.begin(), served.end(), 0), 250 * 150);
}

TEST(SchedulerFairness, ATenantsAdaptersGetEqualSharesOfWhatTheTenantGets) {
  for (const int32_t quantum : {8, 32, 100}) {
    Bench b({.max_batch_tokens = 50,
             .max_sequences = 40,
             .max_logit_rows = 40,
             .prefix_cache = false,
             .tenant_quantum = 32,
             .adapter_quantum = quantum},
            10'000);
    for (int i = 0; i < 300; ++i) b.add_for(7, 0, 40);
    for (int i = 0; i < 10; ++i) b.add_for(7, 1, 1500);
    for (int i = 0; i < 1500; ++i) b.add_for(7, 2, 7);
    for (int i = 0; i < 300; ++i) b.add_for(8, 2, 40);  // another tenant with the same adapter
    std::array<int32_t, 3> served{};
    for (int step = 1; step <= 400; ++step) {
      for (const auto& [id, first, n, n_logits] : b.step()) {
        const Sequence& seq = b.sequences[id - 1];
        if (seq.tenant == 7) served[static_cast<size_t>(seq.adapter)] += n;
      }
      for (const int32_t a : served) {
        for (const int32_t c : served) ASSERT_LE(std::abs(a - c), quantum) << "step " << step;
      }
    }
    EXPECT_NEAR(std::accumulate(served.begin(), served.end(), 0), 400 * 50 / 2, 32);
  }
}

TEST(SchedulerFairness, AnAdapterWithOneRequestPassesAnotherAdaptersQueue) {
  Bench b({.max_batch_tokens = 8, .max_sequences = 8, .max_logit_rows = 8, .adapter_quantum = 4},
          100);
  for (int i = 0; i < 20; ++i) b.add_for(0, 1, 4);
  b.add_for(0, 2, 4);
  EXPECT_THAT(b.step(), testing::ElementsAre(Row{1, 0, 4, 1}, Row{21, 0, 4, 1}));
  EXPECT_THAT(b.step(), testing::ElementsAre(Row{2, 0, 4, 1}, Row{3, 0, 4, 1}));
}

TEST(SchedulerFairness, AWaitingSequenceStartsWithinTheBoundWhenNothingRefuses) {
  for (const int32_t ahead : {0, 1, 19, 20, 21, 100, 333}) {
    for (const auto& [A, q] : {std::pair{1, 20}, {1, 7}, {4, 20}, {4, 3}, {9, 31}}) {
      const Bounds bounds{.K = 6, .A = A, .Q = 20, .q = q, .B = 32};
      Bench b({.max_batch_tokens = 32 + 3,
               .max_sequences = 35,
               .max_logit_rows = 35,
               .prefix_cache = false,
               .tenant_quantum = 20,
               .adapter_quantum = q},
              20'000);
      for (int i = 0; i < 3; ++i) b.add(99, 1, 10'000);  // decode all the time, have no prompt
      b.step();
      for (uint64_t tenant = 0; tenant < 5; ++tenant) b.add(tenant, 20'000, 1);
      for (uint64_t a = 1; a < static_cast<uint64_t>(A); ++a) b.add_for(5, a, 20'000);
      for (int i = 0; i < 7; ++i) b.step();
      if (ahead > 0) b.add_for(5, 0, ahead);
      const Sequence& seq = b.add_for(5, 0, 10);
      int64_t steps = 0;
      for (; seq.admitted == 0 && steps <= bounds.start(ahead); ++steps) b.step();
      EXPECT_LE(steps, bounds.start(ahead)) << ahead << " ahead, " << A << " adapters of " << q;
      EXPECT_GE(steps, bounds.start(ahead) / 6) << ahead << ": the others have their turns too";
    }
  }
}

// Tokens that the sequences of a tenant's adapter have to compute.
int64_t work_of(const Bench& b, uint64_t tenant, uint64_t adapter) {
  int64_t n = 0;
  for (const Sequence& s : b.sequences) {
    if (s.tenant == tenant && s.adapter == adapter && s.state != SequenceState::finished) {
      n += s.n_certain() - s.n_computed;
    }
  }
  return n;
}

// Random arrivals of random tenants and adapters, in bursts and with pauses.
TEST(SchedulerFairness, EveryRandomArrivalStartsWithinItsBoundWhenNothingRefuses) {
  std::mt19937 random(5);
  const auto below = [&](uint32_t n) { return static_cast<int32_t>(random() % n); };
  for (const auto& [Q, q] : {std::pair{20, 20}, {20, 7}, {9, 30}, {1, 1}}) {
    const int32_t n_decodes = 60;
    const Bounds bounds{.K = 5, .A = 6, .Q = Q, .q = q, .B = 100 - n_decodes};
    Bench b({.max_batch_tokens = 100,
             .max_sequences = 100,
             .max_logit_rows = 100,
             .prefix_cache = false,
             .tenant_quantum = Q,
             .adapter_quantum = q},
            6000);
    for (int i = 0; i < n_decodes; ++i) b.add(99, 1, 3000);
    b.step();
    std::map<uint64_t, int64_t> deadlines;
    int64_t n_late = 0, n_waited = 0;
    for (int64_t step = 0; step < 1000; ++step) {
      const int32_t n = below(10) == 0 ? below(30) : below(2);
      for (int32_t i = 0; i < n; ++i) {
        const auto tenant = static_cast<uint64_t>(below(4));
        const auto adapter = static_cast<uint64_t>(below(6) * below(6) / 5);
        const int64_t W = work_of(b, tenant, adapter);
        deadlines[b.add_for(tenant, adapter, 3 + below(40)).id] = step + bounds.start(W);
      }
      for (const auto& [id, first, n_rows, n_logits] : b.step()) {
        if (first == 0 && step >= deadlines.at(id)) ++n_late;
      }
      if (b.scheduler.n_waiting() > 0) ++n_waited;
    }
    EXPECT_EQ(n_late, 0) << Q << ", " << q;
    EXPECT_GT(n_waited, 300) << "nobody had to wait";
  }
}

// The smallest pool, while others keep coming.
TEST(SchedulerFairness, AWaitingSequenceStartsWithinTheBoundWhenThereIsNoRoom) {
  const int32_t length = 64;
  for (const int32_t n_adapters : {1, 3}) {
    const Bounds bounds{.K = 3, .A = n_adapters, .Q = 4, .q = 3, .B = 1};
    Bench b({.max_batch_tokens = 4,
             .max_sequences = 3,
             .max_logit_rows = 4,
             .prefix_cache = false,
             .tenant_quantum = 4,
             .adapter_quantum = 3},
            blocks_for(length));
    uint64_t n_added = 0;
    const auto flood = [&] {
      while (b.scheduler.n_waiting() < 40) {
        const uint64_t i = n_added++;
        b.add_for(i % 2, i % static_cast<uint64_t>(n_adapters), 1 + length / 3,
                  length - 1 - length / 3);
        if (n_adapters > 1) b.add_for(2, 1 + i % 2, 1 + length / 3, length - 1 - length / 3);
      }
    };
    for (int i = 0; i < 50; ++i) {
      flood();
      b.step();
    }
    const Sequence& seq = b.add_for(2, 0, 30, length - 30);
    const int32_t R = b.scheduler.n_running() + b.scheduler.n_preempted();
    const int64_t bound = bounds.start_without_room(R, length);
    int64_t steps = 0, finish = 0;
    for (; seq.admitted == 0 && steps <= bound; ++steps) {
      flood();
      b.step();
    }
    EXPECT_LE(steps, bound);
    const int64_t longest = (R + 4) * length * bounds.oldest_row();
    for (; seq.state != SequenceState::finished && finish <= longest; ++finish) {
      flood();
      b.step();
    }
    EXPECT_EQ(seq.state, SequenceState::finished) << "who is the oldest ends";
  }
}

// Its tenant's other adapter takes the tenant's turns with the rows of a long prompt meanwhile, and
// another tenant's requests use each place that becomes free.
TEST(SchedulerFairness, AtMostOneOfEachAdapterSlipsPastWhoWasRefusedAtItsTurn) {
  Bench b({.max_batch_tokens = 21,
           .max_sequences = 6,
           .max_logit_rows = 21,
           .prefix_cache = false,
           .tenant_quantum = 16,
           .adapter_quantum = 16},
          400);
  b.add_for(0, 1, 6000, 10);
  b.step();
  uint64_t last_admitted = 0;
  int32_t n_flood = 0;
  const auto flood_and_step = [&] {  // they end one by one
    while (b.scheduler.n_waiting() < 10) b.add_for(1, 0, 1, 20 + 7 * n_flood++ % 31);
    b.step();
    for (const Sequence& s : b.sequences) last_admitted = std::max(last_admitted, s.admitted);
  };
  for (int i = 0; i < 60; ++i) flood_and_step();
  const Sequence& seq = b.add_for(0, 2, 10);
  flood_and_step();  // 16 rows or more for tenant 0: the turn of the long prompt ends
  ASSERT_EQ(seq.admitted, 0U) << "this tests nothing";
  const uint64_t before = last_admitted;
  while (seq.admitted == 0 && last_admitted <= before + 4) flood_and_step();
  EXPECT_GT(seq.admitted, 0U) << "four others, K A, came first";
}

TEST(SchedulerFairness, TheOldestGetsItsLogitRowsWhileOthersTakeAll) {
  Bench b({.max_batch_tokens = 64,
           .max_sequences = 4,
           .max_logit_rows = 5,
           .prefix_cache = false,
           .tenant_quantum = 16},
          1000);
  const auto add_scored = [&](uint64_t tenant, int32_t n_prompt) -> Sequence& {
    Sequence& seq = b.make(tenant, n_prompt, 1);
    seq.wants_prompt_logits = true;
    b.scheduler.add(seq);
    return seq;
  };
  b.add(1, 16, 1);  // ends the first turn of tenant 1
  const Sequence& oldest = add_scored(0, 100);
  b.step();
  b.add(0, 5000, 1);  // takes the turns of tenant 0 without a logit row
  add_scored(1, 3000);
  for (int step = 0; oldest.state != SequenceState::finished; ++step) {
    ASSERT_LT(step, 100);
    const int32_t n_computed = oldest.n_computed;
    const bool has_row = testing::Value(
        b.step(),
        testing::Contains(testing::FieldsAre(oldest.id, n_computed, testing::Ge(1), testing::_)));
    ASSERT_TRUE(has_row) << step;
  }
}

}  // namespace
}  // namespace lorry::test
