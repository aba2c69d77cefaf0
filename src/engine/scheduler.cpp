#include "engine/scheduler.h"

#include <algorithm>

#include "base/error.h"

namespace lorry {

namespace {

bool is_decode(const Sequence& seq) {
  return seq.n_computed >= seq.n_prompt && seq.n_certain() - seq.n_computed == 1;
}

// The first position whose logits are wanted.
int32_t first_logit(const Sequence& seq) {
  const int32_t last = seq.n_certain() - 1;
  return seq.wants_prompt_logits ? std::min(seq.n_scored, last) : last;
}

int32_t n_logits(const Sequence& seq, int32_t first, int32_t end) {
  return std::max(0, end - std::max(first, first_logit(seq)));
}

// Keeps the drafts below position `end`.
void drop_drafts(Sequence& seq, int32_t end) {
  const int32_t n_certain = seq.n_certain();
  seq.n_draft = std::clamp(end - n_certain, 0, seq.n_draft);
  seq.tokens.resize(static_cast<size_t>(n_certain + seq.n_draft));
}

bool is_older(const Sequence* a, const Sequence* b) { return a->admitted < b->admitted; }

// Whose turn is over goes to the end of the line; `at` becomes who is next, if there is one.
template <typename Line>
void end_turn(Line& line, typename Line::iterator& at, int32_t quantum) {
  at->deficit = quantum;
  const auto next = std::next(at);
  line.splice(line.end(), line, at);
  if (next != line.end()) at = next;
}

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, int32_t n_blocks)
    : limits_(limits), tables_(n_blocks, limits.window, limits.prefix_cache) {
  LORRY_CHECK(limits.max_sequences > 0 && limits.max_batch_tokens >= limits.max_sequences &&
                  limits.max_logit_rows >= limits.max_sequences && limits.prefill_chunk >= 0 &&
                  limits.tenant_quantum > 0 && limits.adapter_quantum > 0,
              "{} sequences, {} rows, {} logit rows, chunks of {}, quanta {} and {}",
              limits.max_sequences, limits.max_batch_tokens, limits.max_logit_rows,
              limits.prefill_chunk, limits.tenant_quantum, limits.adapter_quantum);
}

bool Scheduler::fits(int64_t total_tokens) const {
  return total_tokens <= INT32_MAX - kBlockTokens &&
         tables_.most_blocks(static_cast<int32_t>(total_tokens)) <= pool().n_total();
}

// ---- queues ----

void Scheduler::add(Sequence& seq) {
  const bool parked = seq.state == SequenceState::parked;
  LORRY_CHECK((parked || seq.state == SequenceState::waiting) && seq.arrival == 0,
              "sequence {} added twice", seq.id);
  const auto n_tokens = static_cast<int32_t>(seq.tokens.size());
  LORRY_CHECK(seq.n_prompt > 0 && (parked ? seq.n_prompt <= n_tokens : seq.n_prompt == n_tokens) &&
                  seq.n_draft == 0 && n_tokens <= seq.max_tokens && fits(seq.max_tokens),
              "sequence {}: prompt of {}, {} tokens of at most {}, {} drafts", seq.id, seq.n_prompt,
              n_tokens, seq.max_tokens, seq.n_draft);
  Queue& queue = queue_for(seq);
  ++queue.n_sequences;
  queue.waiting.push_back(&seq);
  seq.state = SequenceState::waiting;
  seq.arrival = ++n_arrived_;
  seq.admitted = 0;
  ++n_waiting_;
}

Scheduler::Queue& Scheduler::queue_for(const Sequence& seq) {
  auto [tenant, is_new] = tenants_.try_emplace(seq.tenant);
  if (is_new) {
    tenant->second = line_.insert(line_.end(), Tenant{seq.tenant, limits_.tenant_quantum});
  }
  auto& queues = tenant->second->queues;
  auto [queue, is_new_queue] = tenant->second->by_adapter.try_emplace(seq.adapter);
  if (is_new_queue) {
    queue->second = queues.insert(queues.end(), Queue{seq.adapter, 0, limits_.adapter_quantum});
  }
  return *queue->second;
}

Scheduler::Queue& Scheduler::queue_of(const Sequence& seq) {
  return *tenants_.at(seq.tenant)->by_adapter.at(seq.adapter);
}

void Scheduler::remove(Sequence& seq) {
  LORRY_CHECK(!in_step_, "remove within a step");
  take_out(seq);
  seq.state = SequenceState::finished;
}

void Scheduler::park(Sequence& seq) {
  LORRY_CHECK(!in_step_, "park within a step");
  take_out(seq);
  seq.state = SequenceState::parked;
  seq.arrival = 0;
}

void Scheduler::take_out(Sequence& seq) {
  LORRY_CHECK(seq.arrival != 0 && seq.state != SequenceState::finished,
              "sequence {} is not in the scheduler", seq.id);
  Queue& queue = queue_of(seq);
  if (seq.state == SequenceState::running) {
    stop_running(seq);
  } else if (seq.state == SequenceState::preempted) {
    --n_waiting_;
    std::erase(preempted_, &seq);
  } else {
    --n_waiting_;
    std::erase(queue.waiting, &seq);
    if (queue.refused && queue.waiting.empty()) forgive(*tenants_.at(seq.tenant), queue);
  }
  if (--queue.n_sequences > 0) return;
  const auto tenant = tenants_.find(seq.tenant);
  auto& by_adapter = tenant->second->by_adapter;
  tenant->second->queues.erase(by_adapter.at(seq.adapter));
  by_adapter.erase(seq.adapter);
  if (!by_adapter.empty()) return;
  line_.erase(tenant->second);
  tenants_.erase(tenant);
}

void Scheduler::stop_running(Sequence& seq) {
  tables_.clear(seq);
  running_.erase(std::lower_bound(running_.begin(), running_.end(), &seq, is_older));
}

// ---- a step ----

const StepPlan& Scheduler::plan() {
  LORRY_CHECK(!in_step_, "plan() before commit()");
  begin_step();
  plan_decodes();
  admit_first();
  plan_prompts();
  for (const Sequence* seq : running_) queue_of(*seq).prompts.clear();
  in_step_ = !plan_.chunks.empty();
  return plan_;
}

void Scheduler::begin_step() {
  plan_.chunks.clear();
  plan_.preempted.clear();
  tokens_left_ = limits_.max_batch_tokens;
  logits_left_ = limits_.max_logit_rows;
  admission_open_ = true;
  n_decodes_ = 0;
  n_prompts_ = 0;
  for (Tenant& tenant : line_) tenant.next = tenant.queues.begin();
  for (Sequence* seq : running_) {
    LORRY_CHECK(seq->n_computed < seq->n_certain() && seq->n_certain() <= seq->max_tokens &&
                    seq->n_draft >= 0 && (seq->n_draft == 0 || is_decode(*seq)),
                "sequence {}: {} of {} tokens computed, {} of them drafts, at most {}", seq->id,
                seq->n_computed, seq->tokens.size(), seq->n_draft, seq->max_tokens);
    if (is_decode(*seq)) {
      ++n_decodes_;
    } else {
      queue_of(*seq).prompts.push_back(seq);
      ++n_prompts_;
    }
  }
}

void Scheduler::plan_decodes() {
  int32_t drafts_left = std::min(tokens_left_, logits_left_) - n_decodes_;
  if (n_waiting_ > 0 || n_decodes_ < n_running()) drafts_left /= 2;
  // By index: make_room may shorten running_ behind i.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& seq = *running_[i];
    if (!is_decode(seq)) continue;
    make_room(seq, seq.n_computed);
    const int32_t end = std::min({seq.n_certain() + drafts_left, tables_.reach(seq),
                                  static_cast<int32_t>(seq.tokens.size())});
    drop_drafts(seq, end);
    drafts_left -= seq.n_draft;
    if (end == seq.n_computed) continue;
    tables_.extend(seq, end);
    add_rows(seq, end - seq.n_computed);
  }
}

void Scheduler::plan_prompts() {
  for (auto tenant = line_.begin(); tenant != line_.end() && can_serve();) {
    if (!serve(*tenant)) {
      ++tenant;
    } else if (tenant->deficit == 0) {
      end_turn(line_, tenant, limits_.tenant_quantum);
    }
  }
}

bool Scheduler::can_serve() const {
  return tokens_left_ > 0 && (n_prompts_ > 0 || (admission_open_ && n_waiting_ > 0));
}

bool Scheduler::serve(Tenant& tenant) {
  for (; tenant.next != tenant.queues.end() && can_serve(); ++tenant.next) {
    const int32_t n = serve(tenant, *tenant.next);
    if (n == 0) continue;
    tenant.deficit -= n;
    tenant.next->deficit -= n;
    if (tenant.next->deficit == 0) end_turn(tenant.queues, tenant.next, limits_.adapter_quantum);
    return true;
  }
  return false;
}

int32_t Scheduler::serve(Tenant& tenant, Queue& queue) {
  while (!queue.prompts.empty() || admit_next(tenant, queue)) {
    const int32_t n = grow(*queue.prompts.front(), std::min(tenant.deficit, queue.deficit));
    if (n > 0) return n;
    queue.prompts.pop_front();
    --n_prompts_;
  }
  return 0;
}

int32_t Scheduler::grow(Sequence& seq, int32_t limit) {
  if (seq.chunk < 0) tables_.take_hits(seq);
  const int32_t n_planned = seq.chunk < 0 ? 0 : plan_.chunks[static_cast<size_t>(seq.chunk)].n;
  const int32_t begin = seq.n_computed + n_planned;
  int32_t n = std::min({limit, tokens_left_, seq.n_certain() - begin});
  if (limits_.prefill_chunk > 0) n = std::min(n, limits_.prefill_chunk - n_planned);
  n = std::min(n, std::max(first_logit(seq) - begin, 0) + logits_for(seq));
  if (n <= 0) return 0;
  if (n_planned == 0) make_room(seq, begin);
  n = std::min(n, tables_.reach(seq) - begin);
  if (n <= 0) return 0;
  tables_.extend(seq, begin + n);
  add_rows(seq, n);
  return n;
}

int32_t Scheduler::logits_for(const Sequence& seq) const {
  const bool oldest_waits =
      !running_.empty() && running_.front() != &seq && running_.front()->chunk < 0;
  return logits_left_ - (oldest_waits ? 1 : 0);
}

void Scheduler::add_rows(Sequence& seq, int32_t n) {
  if (seq.chunk < 0) {
    seq.chunk = static_cast<int32_t>(plan_.chunks.size());
    plan_.chunks.push_back({&seq, seq.n_computed, 0, 0});
  }
  Chunk& chunk = plan_.chunks[static_cast<size_t>(seq.chunk)];
  chunk.n += n;
  tokens_left_ -= n;
  logits_left_ += chunk.n_logits;
  chunk.n_logits = n_logits(seq, chunk.first, chunk.end());
  logits_left_ -= chunk.n_logits;
}

// ---- admission and preemption ----

void Scheduler::admit_first() {
  while (admission_open_ && (!preempted_.empty() || !refused_.empty())) {
    Sequence& seq = *(preempted_.empty() ? refused_.front()->refused.front()->waiting.front()
                                         : preempted_.front());
    Tenant& tenant = *tenants_.at(seq.tenant);
    Queue& queue = *tenant.by_adapter.at(seq.adapter);
    admission_open_ = has_room_for(seq, std::min(tenant.deficit, queue.deficit));
    if (admission_open_) admit(tenant, queue, seq);
  }
}

bool Scheduler::admit_next(Tenant& tenant, Queue& queue) {
  if (queue.waiting.empty()) return false;
  Sequence& seq = *queue.waiting.front();
  const int32_t limit = std::min(tenant.deficit, queue.deficit);
  admission_open_ = admission_open_ && has_room_for(seq, limit);
  if (admission_open_) {
    admit(tenant, queue, seq);
  } else if (!queue.refused) {
    if (tenant.refused.empty()) refused_.push_back(&tenant);
    tenant.refused.push_back(&queue);
    queue.refused = true;
  }
  return admission_open_;
}

void Scheduler::admit(Tenant& tenant, Queue& queue, Sequence& seq) {
  if (seq.state == SequenceState::preempted) {
    preempted_.pop_front();
  } else {
    queue.waiting.pop_front();
    seq.admitted = ++n_admitted_;
    if (queue.refused) {
      forgive(tenant, queue);
      if (!tenant.refused.empty()) {  // its next one after those of other tenants
        std::erase(refused_, &tenant);
        refused_.push_back(&tenant);
      }
    }
  }
  --n_waiting_;
  seq.state = SequenceState::running;
  running_.push_back(&seq);
  queue.prompts.push_back(&seq);
  ++n_prompts_;
}

void Scheduler::forgive(Tenant& tenant, Queue& queue) {
  std::erase(tenant.refused, &queue);
  queue.refused = false;
  if (tenant.refused.empty()) std::erase(refused_, &tenant);
}

bool Scheduler::has_room_for(Sequence& seq, int32_t limit) {
  if (tokens_left_ == 0 || logits_for(seq) == 0 || n_running() >= limits_.max_sequences) {
    return false;
  }
  // Alone, it has all the room there is: a chunk shrinks to the free blocks.
  if (running_.empty()) return true;
  const BlockTables::Hits hits = tables_.find_hits(seq);
  const int32_t n_hit = hits.n_blocks * kBlockTokens;
  int32_t rows = std::min({limit, tokens_left_, seq.n_certain() - n_hit});
  if (limits_.prefill_chunk > 0) rows = std::min(rows, limits_.prefill_chunk);
  return hits.n_free + blocks_for(rows) + promised_blocks() <= pool().n_free();
}

int64_t Scheduler::promised_blocks() const {
  int64_t n = 0;
  for (const Sequence* seq : running_) {
    // For the tokens that it has and the next one. With a window, what slides out pays for the
    // rest.
    const int32_t n_tokens = seq->n_certain() + 1;
    n += std::clamp(blocks_for(n_tokens) - static_cast<int32_t>(seq->blocks.size()), 0,
                    tables_.most_blocks(n_tokens));
  }
  return n;
}

void Scheduler::make_room(const Sequence& seq, int32_t position) {
  while (tables_.reach(seq) <= position && running_.back() != &seq) preempt(*running_.back());
}

void Scheduler::preempt(Sequence& seq) {
  erase_chunk(seq);
  n_prompts_ -= static_cast<int32_t>(std::erase(queue_of(seq).prompts, &seq));
  stop_running(seq);
  seq.state = SequenceState::preempted;
  preempted_.push_front(&seq);
  ++n_waiting_;
  plan_.preempted.push_back(&seq);
  admission_open_ = false;
}

void Scheduler::erase_chunk(Sequence& seq) {
  if (seq.chunk < 0) return;
  const auto it = plan_.chunks.begin() + seq.chunk;
  tokens_left_ += it->n;
  logits_left_ += it->n_logits;
  for (auto later = plan_.chunks.erase(it); later != plan_.chunks.end(); ++later) {
    --later->seq->chunk;
  }
  seq.chunk = -1;
}

// ---- after a step ----

void Scheduler::commit(const StepPlan& plan) {
  LORRY_CHECK(&plan == &plan_, "commit of another plan");
  if (!in_step_) return;
  in_step_ = false;
  for (const Chunk& chunk : plan_.chunks) {
    Sequence& seq = *chunk.seq;
    seq.chunk = -1;
    seq.n_computed = chunk.end();
    if (chunk.n_logits > 0) seq.n_scored = chunk.end();
    tables_.settle(seq);
  }
}

void Scheduler::truncate(Sequence& seq, int32_t n_tokens) {
  LORRY_CHECK(!in_step_, "truncate within a step");
  tables_.truncate(seq, n_tokens);
}

}  // namespace lorry
