// A Scheduler with its sequences, for tests that say what each step does.
#pragma once
#include <cstdint>
#include <deque>
#include <tuple>
#include <vector>

#include "engine/scheduler.h"

namespace lorry::test {

using Row = std::tuple<uint64_t, int32_t, int32_t, int32_t>;  // id, first, n, n_logits

inline std::vector<Row> rows(const StepPlan& plan) {
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

  Sequence& add_for(uint64_t tenant, uint64_t adapter, int32_t n_prompt, int32_t n_answer = 1) {
    Sequence& seq = make(tenant, n_prompt, n_answer);
    seq.adapter = adapter;
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

}  // namespace lorry::test
