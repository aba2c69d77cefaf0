// Scheduler: decides which rows of which sequences run in the next step, and who holds KV blocks.
// Pure policy over integers: no tensor, clock, lock or randomness. Engine thread only. Sequences
// are the engine's; the scheduler keeps pointers from add() to remove() or park().
//
// A step: plan() -> the engine runs the rows -> commit(plan) -> for every sequence with drafts
// truncate(), for every chunk that reached the last token append a sampled one or remove().
//
// Policy
// - Decodes (a generated token's row, and drafts) first, in order of first admission: each has its
//   row in every step. Drafts use what is left, half of it while prompts wait.
// - The other rows go to prompts, in any chunking, by deficit round robin over tenants: a turn ends
//   when the tenant was given tenant_quantum tokens; then it goes to the end of the line. Who can
//   take none now (no block, no logit row) keeps his place. Within a tenant: first in, first out.
// - Admission needs the blocks of the first chunk beside those that running sequences are known to
//   need; the first refusal for want of blocks ends it for the step, so that nobody slips past.
// - Without a free block a sequence takes those of the running one that was admitted last, never of
//   an older one; the youngest waits. Who is preempted returns to the head of its tenant's queue
//   and keeps its seniority (the order of first admission). The oldest preempted sequence comes
//   back first and before anyone new, so that preempted ones are younger than all running ones.
//
// - park() takes a sequence out. When it is added again it is new: at the end of its queue, and its
//   seniority is that of its next admission, so that those who never left stay older.
//
// Progress: the oldest sequence runs, cannot be preempted and can preempt all others. So plan() is
// never empty while there is work, and every sequence that is not parked ends.
//
// Starvation bounds. Let Q be tenant_quantum, K the most tenants at a time, W the tokens that its
// own tenant has to compute before a waiting sequence, m = ceil(W / Q) + 1 the turns that this
// takes, D the rows of a step's decodes and B = min(max_batch_tokens, max_logit_rows) - D (positive
// while a prompt is computed).
// - While neither blocks nor max_sequences refuse, its first rows come in ceil(m K Q / B) steps:
//   each other tenant spends at most Q tokens between two turns of its own.
// - In any case they come in (R + m K Q) L ceil(K Q / B) steps: R sequences were admitted before it
//   came, at most m K Q are until its turn (each takes a token of somebody's turn); the oldest of
//   them computes a row in each ceil(K Q / B) steps and has at most L = max_tokens to compute.
#pragma once
#include <cstdint>
#include <deque>
#include <list>
#include <unordered_map>
#include <vector>

#include "engine/block_tables.h"
#include "engine/sequence.h"

namespace lorry {

struct SchedulerLimits {
  int32_t max_batch_tokens = 0;  // rows of a step; at least max_sequences
  int32_t max_sequences = 0;     // running at a time
  int32_t max_logit_rows = 0;    // of a step; at least max_sequences
  int32_t prefill_chunk = 0;     // rows of one prompt in a step; 0: what the step has
  int32_t window = 0;            // 0: none; else position p sees p - window + 1 ... p
  bool prefix_cache = true;
  int32_t tenant_quantum = 256;  // prompt tokens of a tenant's turn
};

// Rows [first, first + n) of seq->tokens; the last n_logits of them need logits.
struct Chunk {
  Sequence* seq = nullptr;
  int32_t first = 0, n = 0, n_logits = 0;

  int32_t end() const { return first + n; }
};

// Valid until the next plan(). A sequence has at most one chunk.
struct StepPlan {
  std::vector<Chunk> chunks;
  std::vector<Sequence*> preempted;
};

class Scheduler {
 public:
  // Requires: limits as described above, n_blocks > 0.
  Scheduler(const SchedulerLimits& limits, int32_t n_blocks);

  // Whether a sequence of total_tokens (prompt and answer) can ever run.
  bool fits(int64_t total_tokens) const;
  // Queues a new sequence or a parked one. Requires: n_prompt > 0 tokens of a prompt and, only when
  // it was parked, generated ones; no drafts; at most max_tokens, and fits(max_tokens).
  void add(Sequence& seq);
  // Finish or cancel, in any state but parked; its blocks are free. Not between plan() and commit()
  // of a step with chunks.
  void remove(Sequence& seq);
  // Takes a waiting, running or preempted sequence out; add() brings it back, or nobody does. Its
  // certain tokens stay, drafts go; its blocks are free, and until they are handed out again the
  // prefix cache finds what they hold. What it computes afterwards has the same bits, as after a
  // preemption: logits that were delivered do not come again (n_scored). Not between plan() and
  // commit() of a step with chunks.
  void park(Sequence& seq);

  // Requires: every running sequence has a token that is not computed, at most max_tokens certain
  // ones, and drafts only when its last certain token was generated and alone is not computed.
  // May drop drafts (Sequence).
  const StepPlan& plan();
  // The rows of the last plan are in the cache.
  void commit(const StepPlan& plan);
  // Drops the tokens from n_tokens on, which must be drafts, and gives surplus blocks back; what
  // stays is certain. Not between plan() and commit().
  void truncate(Sequence& seq, int32_t n_tokens);

  int32_t n_waiting() const { return n_waiting_; }  // preempted ones too
  int32_t n_preempted() const { return static_cast<int32_t>(preempted_.size()); }
  int32_t n_running() const { return static_cast<int32_t>(running_.size()); }
  const BlockPool& pool() const { return tables_.pool(); }
  // Aborts when queues, tables and reference counts disagree. O(blocks + sequences).
  void check_integrity() const;

 private:
  struct Tenant {
    uint64_t id = 0;
    int32_t n_sequences = 0;         // in any queue
    int32_t deficit = 0;             // prompt tokens left of its turn
    std::deque<Sequence*> waiting;   // preempted ones first, by seniority
    std::deque<Sequence*> prefills;  // of this step: running, with prompt left to give rows to
  };

  Tenant& tenant_of(const Sequence& seq) { return *tenants_.at(seq.tenant); }
  // Out of queues and tables, in any state; the last of its tenant takes the tenant along.
  void take_out(Sequence& seq);
  void begin_step();
  void plan_decodes();
  void plan_prefills();
  // Gives rows to the tenant's next prompt; false when none can take any in this step.
  bool serve(Tenant& tenant);
  // Moves the head of the tenant's queue to the running ones, if it may.
  bool admit(Tenant& tenant);
  bool has_room_for(Tenant& tenant, Sequence& seq);
  // Blocks that the running sequences are known to need.
  int64_t promised_blocks() const;
  // Plans up to `limit` rows more of a prompt; returns how many.
  int32_t grow(Sequence& seq, int32_t limit);
  // Preempts younger sequences until the table of `seq` can reach beyond `position`.
  void make_room(const Sequence& seq, int32_t position);
  void preempt(Sequence& seq);
  void add_rows(Sequence& seq, int32_t n);
  void erase_chunk(Sequence& seq);
  void stop_running(Sequence& seq);
  void check_queues() const;

  const SchedulerLimits limits_;
  BlockTables tables_;
  std::list<Tenant> line_;  // in order of their turns
  std::unordered_map<uint64_t, std::list<Tenant>::iterator> tenants_;
  std::vector<Sequence*> running_;   // by seniority: the order of first admission
  std::deque<Sequence*> preempted_;  // by seniority; they are in their tenants' queues too
  int32_t n_waiting_ = 0;
  uint64_t n_arrived_ = 0, n_admitted_ = 0;

  // ---- of the current step ----
  StepPlan plan_;
  bool in_step_ = false;
  bool admission_open_ = false;
  int32_t tokens_left_ = 0, logits_left_ = 0;
  int32_t n_decodes_ = 0;
};

}  // namespace lorry
