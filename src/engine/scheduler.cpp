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

}  // namespace

Scheduler::Scheduler(const SchedulerLimits& limits, int32_t n_blocks)
    : limits_(limits), tables_(n_blocks, limits.window, limits.prefix_cache) {
  LORRY_CHECK(limits.max_sequences > 0 && limits.max_batch_tokens >= limits.max_sequences &&
                  limits.max_logit_rows >= limits.max_sequences && limits.prefill_chunk >= 0 &&
                  limits.tenant_quantum > 0,
              "{} sequences, {} rows, {} logit rows, chunks of {}, quantum {}",
              limits.max_sequences, limits.max_batch_tokens, limits.max_logit_rows,
              limits.prefill_chunk, limits.tenant_quantum);
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
  auto [it, is_new] = tenants_.try_emplace(seq.tenant);
  if (is_new) {
    it->second = line_.insert(line_.end(), Tenant{seq.tenant, 0, limits_.tenant_quantum, {}, {}});
  }
  ++it->second->n_sequences;
  it->second->waiting.push_back(&seq);
  seq.state = SequenceState::waiting;
  seq.arrival = ++n_arrived_;
  seq.admitted = 0;
  ++n_waiting_;
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
  const auto it = tenants_.find(seq.tenant);
  Tenant& tenant = *it->second;
  if (seq.state == SequenceState::running) {
    stop_running(seq);
  } else {
    std::erase(tenant.waiting, &seq);
    --n_waiting_;
    std::erase(preempted_, &seq);
  }
  if (--tenant.n_sequences == 0) {
    line_.erase(it->second);
    tenants_.erase(it);
  }
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
  plan_prefills();
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
  for (Tenant& tenant : line_) tenant.prefills.clear();
  for (Sequence* seq : running_) {
    LORRY_CHECK(seq->n_computed < seq->n_certain() && seq->n_certain() <= seq->max_tokens &&
                    seq->n_draft >= 0 && (seq->n_draft == 0 || is_decode(*seq)),
                "sequence {}: {} of {} tokens computed, {} of them drafts, at most {}", seq->id,
                seq->n_computed, seq->tokens.size(), seq->n_draft, seq->max_tokens);
    if (is_decode(*seq)) {
      ++n_decodes_;
    } else {
      tenant_of(*seq).prefills.push_back(seq);
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

void Scheduler::plan_prefills() {
  for (auto tenant = line_.begin(); tenant != line_.end() && tokens_left_ > 0;) {
    const auto next = std::next(tenant);
    if (!serve(*tenant)) {
      tenant = next;
    } else if (tenant->deficit == 0) {
      tenant->deficit = limits_.tenant_quantum;
      line_.splice(line_.end(), line_, tenant);
      if (next != line_.end()) tenant = next;
    }
  }
}

bool Scheduler::serve(Tenant& tenant) {
  while (!tenant.prefills.empty() || admit(tenant)) {
    const int32_t n = grow(*tenant.prefills.front(), tenant.deficit);
    tenant.deficit -= n;
    if (n > 0) return true;
    tenant.prefills.pop_front();
  }
  return false;
}

int32_t Scheduler::grow(Sequence& seq, int32_t limit) {
  if (seq.chunk < 0) tables_.take_hits(seq);
  const int32_t n_planned = seq.chunk < 0 ? 0 : plan_.chunks[static_cast<size_t>(seq.chunk)].n;
  const int32_t begin = seq.n_computed + n_planned;
  int32_t n = std::min({limit, tokens_left_, seq.n_certain() - begin});
  if (limits_.prefill_chunk > 0) n = std::min(n, limits_.prefill_chunk - n_planned);
  n = std::min(n, std::max(first_logit(seq) - begin, 0) + logits_left_);
  if (n <= 0) return 0;
  if (n_planned == 0) make_room(seq, begin);
  n = std::min(n, tables_.reach(seq) - begin);
  if (n <= 0) return 0;
  tables_.extend(seq, begin + n);
  add_rows(seq, n);
  return n;
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

bool Scheduler::admit(Tenant& tenant) {
  if (!admission_open_ || tenant.waiting.empty() || logits_left_ == 0 ||
      n_running() >= limits_.max_sequences) {
    return false;
  }
  Sequence& seq = *tenant.waiting.front();
  if (!preempted_.empty() && preempted_.front() != &seq) return false;
  admission_open_ = has_room_for(tenant, seq);
  if (!admission_open_) return false;

  tenant.waiting.pop_front();
  --n_waiting_;
  if (seq.state == SequenceState::preempted) {
    preempted_.pop_front();
  } else {
    seq.admitted = ++n_admitted_;
  }
  seq.state = SequenceState::running;
  running_.push_back(&seq);
  tenant.prefills.push_back(&seq);
  return true;
}

bool Scheduler::has_room_for(Tenant& tenant, Sequence& seq) {
  // Alone, it has all the room there is: a chunk shrinks to the free blocks.
  if (running_.empty()) return true;
  const BlockTables::Hits hits = tables_.find_hits(seq);
  const int32_t n_hit = hits.n_blocks * kBlockTokens;
  int32_t rows = std::min({tenant.deficit, tokens_left_, seq.n_certain() - n_hit});
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
  Tenant& tenant = tenant_of(seq);
  erase_chunk(seq);
  std::erase(tenant.prefills, &seq);
  stop_running(seq);
  seq.state = SequenceState::preempted;
  tenant.waiting.push_front(&seq);
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
