// A sequence that is parked and brought back computes the same bits: a real model under a Scheduler
// whose sequences come and go.
#include <algorithm>
#include <deque>
#include <random>

#include <gtest/gtest.h>

#include "engine/batch.h"
#include "engine/harness.h"
#include "engine/loaded_model.h"
#include "engine/memory_plan.h"

namespace lorry::test {
namespace {

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<float> logits;  // of each position whose row was asked for, in order
};

struct Outcome {
  std::vector<Answer> answers;
  int parks = 0, hits = 0;
};

class Parked : public testing::TestWithParam<std::string> {
 protected:
  // Greedy answers to twelve prompts; `parks`: percent of steps that park one of them.
  Outcome run(int32_t kv_tokens, uint32_t parks) {
    EngineOptions o = golden_options(GetParam(), {});
    o.kv_tokens = kv_tokens;
    Log log({LogLevel::error});
    const auto model = load_model(o, log);
    SchedulerLimits limits{.max_batch_tokens = 48, .max_sequences = 12, .max_logit_rows = 48};
    limits.window = model->info.spec.attention.window;
    Scheduler scheduler(limits, static_cast<int32_t>(model->memory.kv_blocks));
    BatchBuilder batch(forward_limits(o));
    std::deque<Sequence> sequences;
    Outcome out;
    for (uint64_t id = 0; id < 12; ++id) {
      add(scheduler, sequences.emplace_back(), id);
      out.answers.emplace_back();
    }
    std::vector<Sequence*> parked;
    while (scheduler.n_running() + scheduler.n_waiting() > 0 || !parked.empty()) {
      out.parks += shuffle(scheduler, sequences, parked, parks);
      const StepPlan& plan = scheduler.plan();
      if (plan.chunks.empty()) continue;
      batch.clear();
      for (const Chunk& chunk : plan.chunks) batch.add(chunk, {});
      const ForwardOutput f = model->lm->forward(batch.build(), model->layers, batch.views());
      scheduler.commit(plan);
      for (const BatchEntry& e : batch.entries()) {
        if (out.parks > 0 && e.chunk->seq->n_hit > 0) ++out.hits;
        take(scheduler, e, f, out.answers[e.chunk->seq->id]);
      }
    }
    return out;
  }

 private:
  static void add(Scheduler& scheduler, Sequence& seq, uint64_t id) {
    seq.id = id;
    std::mt19937 tokens(static_cast<uint32_t>(id));
    seq.n_prompt = static_cast<int32_t>(1 + tokens() % 60);
    for (int32_t i = 0; i < seq.n_prompt; ++i) {
      seq.tokens.push_back(static_cast<int32_t>(tokens() % 256));
    }
    seq.max_tokens = seq.n_prompt + 50;
    seq.wants_prompt_logits = id % 3 == 0;
    scheduler.add(seq);
  }

  // Parks one and brings another back, at random.
  int shuffle(Scheduler& scheduler, std::deque<Sequence>& sequences, std::vector<Sequence*>& parked,
              uint32_t percent) {
    if (!parked.empty() && random_() % 100 < 40) {
      scheduler.add(*parked.front());
      parked.erase(parked.begin());
    }
    Sequence& seq = sequences[random_() % sequences.size()];
    if (random_() % 100 >= percent || seq.arrival == 0 || seq.state == SequenceState::finished) {
      return 0;
    }
    scheduler.park(seq);
    parked.push_back(&seq);
    return 1;
  }

  static void take(Scheduler& scheduler, const BatchEntry& e, const ForwardOutput& f,
                   Answer& answer) {
    Sequence& seq = *e.chunk->seq;
    const auto vocab = static_cast<size_t>(f.logits.shape[1]);
    for (int32_t i = 0; i < e.chunk->n_logits; ++i) {
      const float* row = f.logits.row<const float>(e.first_logit_row + i);
      answer.logits.insert(answer.logits.end(), row, row + vocab);
    }
    if (e.chunk->end() < seq.n_certain()) return;
    const auto best = std::max_element(answer.logits.end() - static_cast<std::ptrdiff_t>(vocab),
                                       answer.logits.end());
    const auto token = best - (answer.logits.end() - static_cast<std::ptrdiff_t>(vocab));
    seq.tokens.push_back(static_cast<int32_t>(token));
    if (seq.n_certain() < seq.max_tokens) return;
    answer.tokens = seq.tokens;
    scheduler.remove(seq);
  }

  std::mt19937 random_{7};
};

TEST_P(Parked, SequencesThatComeBackComputeTheSameBits) {
  const Outcome want = run(4096, 0);
  for (const int32_t kv_tokens : {4096, 160}) {  // with their blocks still there, and without
    const Outcome got = run(kv_tokens, 90);
    EXPECT_GT(got.parks, 20);
    EXPECT_GT(got.hits, 0);
    for (size_t i = 0; i < want.answers.size(); ++i) {
      EXPECT_EQ(got.answers[i].tokens, want.answers[i].tokens) << i;
      EXPECT_EQ(got.answers[i].logits, want.answers[i].logits) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Parked,
                         testing::Values("mixtral-base", "mixtral-sliding", "dbrx-base"),
                         [](const auto& p) { return test_name(p.param); });

}  // namespace
}  // namespace lorry::test
