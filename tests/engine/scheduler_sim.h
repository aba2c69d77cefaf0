// A random engine around a Scheduler, without a model: requests arrive, are cancelled, parked,
// draft and end, and a fake KV array stands in for the keys and values. A slot holds a hash of the
// salt and of all tokens up to its position, written when its row runs; before a chunk's rows read,
// every slot that they can see must hold exactly that of their own sequence.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/scheduler.h"

namespace lorry {

struct SimConfig {
  std::string name;
  SchedulerLimits limits;
  int32_t n_blocks = 32;
  int32_t n_tenants = 4;
  int32_t n_adapters = 3;    // of a tenant
  int32_t max_live = 16;     // sequences in the scheduler
  int32_t max_tokens = 128;  // of a sequence
  int32_t max_drafts = 0;
  int32_t arrivals = 40;       // percent of steps with an arrival
  int32_t cancels = 2;         // percent of steps with a cancellation
  int32_t parks = 6;           // percent of steps with a sequence parked; the same brought back
  int32_t shared = 70;         // percent of prompts that begin like others
  int32_t prompt_logits = 10;  // percent
};

struct SimCounts {
  int64_t steps = 0, rows = 0, finished = 0, cancelled = 0, preempted = 0, hit_tokens = 0;
  int64_t parked_waiting = 0, parked_running = 0, parked_preempted = 0;
  int64_t drafts_run = 0, drafts_rejected = 0, drafts_dropped = 0, slid = 0;
};

class Sim {
 public:
  Sim(const SimConfig& config, uint32_t seed);

  // Runs `steps` steps with arrivals, cancellations and parks, then until all have ended. A failed
  // expectation is a failure of the current test.
  void run(int64_t steps);
  const SimCounts& counts() const { return counts_; }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  struct Live {
    Sequence seq;
    std::vector<uint64_t> content;  // of each position: what its slot must hold
    int32_t n_scored = 0;           // positions whose logits came
    int32_t n_end = 0;              // tokens at which it ends
    int32_t n_drafted = 0;          // drafts pushed for this step
  };

  int64_t turns_of_oldest() const;
  bool chance(int32_t percent) { return below(100) < percent; }
  int32_t below(int32_t bound) {
    return static_cast<int32_t>(random_() % static_cast<uint32_t>(bound));
  }
  void arrive();
  void cancel();
  void park();
  void bring_back(size_t index);
  void draft();
  void step();
  void check_plan(const StepPlan& plan);
  void check_oldest(const StepPlan& plan);
  void check_chunk(const Chunk& chunk);
  void write(const Chunk& chunk);
  void read(const Chunk& chunk);
  void sample(const Chunk& chunk);
  void remember_content(Live& live);
  int64_t slot(const Sequence& seq, int32_t position) const;
  Live& live_of(const Sequence& seq);

  const SimConfig config_;
  std::mt19937 random_;
  Scheduler scheduler_;
  std::vector<std::unique_ptr<Live>> live_;       // in the scheduler
  std::vector<std::unique_ptr<Live>> parked_;     // not in it, at most 4
  std::vector<std::vector<int32_t>> beginnings_;  // of prompts
  std::vector<uint64_t> slots_;
  uint64_t n_ids_ = 0;
  uint64_t oldest_ = 0;       // its id
  int64_t oldest_waits_ = 0;  // prompt rows of others since its last row
  SimCounts counts_;
};

}  // namespace lorry
