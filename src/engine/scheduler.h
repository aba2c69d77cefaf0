// Scheduler: decides which rows of which sequences run in the next step, and who holds KV blocks.
// Pure policy over integers: no tensor, clock, lock or randomness. Engine thread only. Sequences
// are the engine's; the scheduler keeps pointers from add() to remove() or park().
//
// A step: plan() -> the engine runs the rows -> commit(plan) -> for every sequence with drafts
// truncate(), for every chunk that reached the last token append a sampled one or remove().
//
// Policy
// - Decodes (a generated token's row, and drafts) first, in order of seniority, which is that of
//   first admission: each has its row in every step. Drafts use what is left, half of it while
//   prompts wait.
// - The other rows go to prompts, in any chunking, by deficit round robin over tenants and, within
//   a tenant, over its adapters: a turn ends when tenant_quantum (adapter_quantum) tokens were
//   given; then it goes to the end of its line. So a tenant's share does not depend on how many
//   adapters it uses. Who can take no rows now keeps his place. Within an adapter: first in, first
//   out.
// - Admission, at its adapter's turn, needs a place among max_sequences, a logit row and the blocks
//   of the first chunk beside those that running sequences are known to need. The first refusal
//   ends it for the step. Whose turn found no room gets in line: it is admitted when there is,
//   before any turn, alternately by tenants and by adapters of a tenant, so that nobody slips past.
// - Without a free block a sequence takes those of the running one that was admitted last, never of
//   an older one; the youngest waits. Who is preempted keeps its seniority. The oldest preempted
//   sequence comes back first, before anyone new, so that preempted ones are younger than all
//   running ones.
// - While the oldest has no row in a step, one logit row is kept for it.
// - park() takes a sequence out. When it is added again it is new: at the end of its queue, and its
//   seniority is that of its next admission, so that those who never left stay older.
//
// Progress: the oldest sequence runs, cannot be preempted and can preempt all others. So plan() is
// never empty while there is work, and every sequence that is not parked ends.
//
// Starvation bounds. Let K be the most tenants at a time, A the most adapters of one, Q and q the
// quanta of a tenant and of an adapter, D the rows of a step's decodes and B = max_batch_tokens - D
// (positive while a prompt is computed). Between two turns of a tenant each other one is given at
// most Q tokens, and between two of an adapter each other one of its tenant at most q.
// - The oldest sequence computes a row in each ceil(N K Q / B) steps, N = ceil((A - 1) q / Q) + 1:
//   before its adapter's turn its tenant is given (A - 1) q tokens to others, in N turns.
// - Let W be the tokens that its own adapter has to compute before a waiting sequence. That takes
//   m = ceil(W / q) + 1 turns of the adapter, so T = W + m (A - 1) q tokens of the tenant, so
//   M = ceil(T / Q) + 1 of its turns. While neither blocks, logit rows nor max_sequences refuse,
//   its first rows come in ceil(M K Q / B) steps.
// - In any case they come in P L ceil(N K Q / B) steps: when P sequences are admitted before it,
//   the oldest of them has at most L = max_tokens to compute. P = R + M K Q + 2 w K A: R were
//   admitted before it came, at most M K Q are at turns (each takes a token of one) until those of
//   its adapter have come, and before each of the w sequences of its adapter that wait, itself
//   included, at most 2 K A from the line of those that found no room.
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
  int32_t tenant_quantum = 256;   // prompt tokens of a tenant's turn
  int32_t adapter_quantum = 256;  // and of an adapter's, within its tenant's turns
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
  // The sequences of a tenant's adapter; it lives while there are any.
  struct Queue {
    uint64_t adapter = 0;
    int32_t n_sequences = 0;          // waiting, preempted and running
    int32_t deficit = 0;              // prompt tokens left of its turn
    std::deque<Sequence*> waiting{};  // but for preempted ones
    std::deque<Sequence*> prompts{};  // within plan(): running, with prompt left to give rows to
    bool refused = false;             // its turn found no room for the first that waits
  };
  struct Tenant {
    uint64_t id = 0;
    int32_t deficit = 0;        // prompt tokens left of its turn
    std::list<Queue> queues{};  // in order of their turns
    std::unordered_map<uint64_t, std::list<Queue>::iterator> by_adapter{};
    std::deque<Queue*> refused{};  // some of them, in order of admission
    // Within plan(): those before it can take no more rows in this step.
    std::list<Queue>::iterator next{};
  };

  Queue& queue_for(const Sequence& seq);  // made when there is none
  Queue& queue_of(const Sequence& seq);
  // Out of queues and tables, in any state; the last of its adapter takes the queue along.
  void take_out(Sequence& seq);
  void begin_step();
  void plan_decodes();
  void plan_prompts();
  // Whether rows are left, and anybody who might take them.
  bool can_serve() const;
  // Gives rows to the tenant's next prompt; false when none can take any in this step.
  bool serve(Tenant& tenant);
  // How many rows the queue's next prompt was given; 0 when none can take any in this step.
  int32_t serve(Tenant& tenant, Queue& queue);
  // Admits preempted sequences and those that found no room at their turn, while there is room.
  void admit_first();
  // Admits who waits first in the queue, whose turn it is, or puts the queue in line for room.
  bool admit_next(Tenant& tenant, Queue& queue);
  void admit(Tenant& tenant, Queue& queue, Sequence& seq);
  // Takes the queue out of the line for room.
  void forgive(Tenant& tenant, Queue& queue);
  // For a first chunk of up to `limit` rows.
  bool has_room_for(Sequence& seq, int32_t limit);
  int32_t logits_for(const Sequence& seq) const;
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
  void check_queue(const Tenant& tenant, const Queue& queue) const;

  const SchedulerLimits limits_;
  BlockTables tables_;
  std::list<Tenant> line_;  // in order of their turns
  std::unordered_map<uint64_t, std::list<Tenant>::iterator> tenants_;
  std::vector<Sequence*> running_;   // by seniority: the order of first admission
  std::deque<Sequence*> preempted_;  // by seniority
  std::deque<Tenant*> refused_;      // with refused queues, in order of admission
  int32_t n_waiting_ = 0;
  uint64_t n_arrived_ = 0, n_admitted_ = 0;

  // ---- of the current step ----
  StepPlan plan_;
  bool in_step_ = false;
  bool admission_open_ = false;
  int32_t tokens_left_ = 0, logits_left_ = 0;
  int32_t n_decodes_ = 0;
  int32_t n_prompts_ = 0;  // in the queues' prompts
};

}  // namespace lorry
