#include "engine/core.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/sha256.h"

namespace lorry {

namespace {

using Seconds = std::chrono::duration<double>;

double seconds(EngineCore::Clock::time_point from, EngineCore::Clock::time_point to) {
  return Seconds(to - from).count();
}

SchedulerLimits scheduler_limits(const EngineOptions& o, const Spec& spec) {
  SchedulerLimits limits;
  limits.max_batch_tokens = o.max_batch_tokens;
  limits.max_sequences = o.max_sequences;
  limits.max_logit_rows = o.max_logit_rows;
  limits.prefill_chunk = o.prefill_chunk;
  limits.window = spec.attention.window;
  limits.prefix_cache = o.prefix_cache;
  return limits;
}

AdapterRegistry::Options registry_options(const EngineOptions& o, const MemoryPlan& memory,
                                          const EngineCore::Callbacks& callbacks, Leader& leader) {
  AdapterRegistry::Options r;
  if (!leader.is_alone()) {
    r.mirror = &leader;
    r.loader_threads = 1;  // it reads rows of the base model, one reader at a time
  }
  r.device_bytes = memory.adapters;
  r.host_bytes = memory.adapters_host;
  r.root = o.adapter_root;
  r.limits.max_rank = o.max_lora_rank;
  r.limits.max_medusa_heads = o.max_medusa_heads;
  r.max_active = o.max_active_adapters;
  r.fetch = o.adapter_fetch;
  r.fetch_threads = o.adapter_fetch_threads;
  r.wake = callbacks.wake;
  r.loaded = callbacks.loaded;
  return r;
}

// Requests share cached keys and values only when weights (Sequence::adapter_salt), tenant and salt
// are the same.
Digest cache_salt(const Request& r) {
  Sha256 hash;
  hash.update(fmt::format("/{}/", r.tenant));
  hash.update(r.cache_salt);
  return hash.finish();
}

// The first position whose rows use the adapter: where its invocation tokens begin, at the last
// place where they stand in the prompt (PEFT's calculate_alora_offsets).
int32_t adapter_from(const Adapter& adapter, std::span<const int32_t> prompt) {
  const std::span<const int32_t> invocation = adapter.invocation_tokens();
  if (invocation.empty()) return 0;
  const auto at = std::find_end(prompt.begin(), prompt.end(), invocation.begin(), invocation.end());
  return at == prompt.end() ? kNoAdapter : static_cast<int32_t>(at - prompt.begin());
}

void set(AdapterTierCounters& to, const Residency::TierCounts& from) {
  to.bytes = from.size;
  to.used_bytes = from.used;
  to.loads = from.fills;
  to.evictions = from.evictions;
}

}  // namespace

EngineCore::EngineCore(const EngineOptions& options, LoadedModel& model, const Tokenizer* tokenizer,
                       Callbacks callbacks)
    : options_(options),
      cycle_time_(static_cast<int64_t>(options.adapter_cycle_seconds * 1e9)),
      model_(model),
      tokenizer_(tokenizer),
      released_(std::move(callbacks.released)),
      leader_(model),
      registry_(registry_options(options, model.memory, callbacks, leader_), adapter_target(model)),
      scheduler_(scheduler_limits(options, model.info.spec),
                 static_cast<int32_t>(model.memory.kv_blocks)),
      batch_(model.lm->limits()) {
  if (tokenizer != nullptr) eos_ids_ = tokenizer->eos_ids();
  for (const auto& [name, folder] : options.adapters) registry_.register_name(name, folder);
  for (int i = 0; i < model.pool->size(); ++i) {
    samplers_.push_back(std::make_unique<Sampler>(model.info.spec.vocab));
  }
  choices_.reserve(static_cast<size_t>(options.max_sequences));
  scores_.reserve(static_cast<size_t>(options.max_logit_rows));
  update_counters();
}

EngineCore::~EngineCore() {
  cancel_all();
  leader_.stop();
}

void EngineCore::add(RequestId id, Request request, Clock::time_point submitted) {
  auto owned = std::make_unique<Active>();
  Active& a = *owned;
  a.request = std::move(request);
  a.submitted = submitted;
  a.seq.id = id;
  a.seq.tenant = a.request.tenant;
  a.seq.tokens = a.request.prompt;
  a.seq.n_prompt = static_cast<int32_t>(a.seq.tokens.size());
  a.seq.max_tokens = a.seq.n_prompt + a.request.max_new_tokens;
  a.seq.wants_prompt_logits = a.request.want_logits || a.request.prompt_logprobs;
  // Length-dependent rotary frequencies give a long prompt's tokens other keys than a short one's.
  const RopeSpec& rope = model_.info.spec.rope;
  a.seq.use_prefix_cache = !rope.depends_on_length() || a.seq.n_prompt <= rope.original_positions;
  if (!a.request.stop.empty()) {
    a.stops = std::make_unique<StopTexts>(*tokenizer_, a.request.stop);
  }
  requests_.emplace(id, std::move(owned));
  if (!a.request.adapter.empty()) {
    a.handle = registry_.acquire(a.request.adapter);
    a.has_adapter = true;
    unscheduled_.push_back(id);
  } else {
    schedule(a);
  }
}

bool EngineCore::schedule(Active& a) {
  const Adapter* adapter = a.has_adapter ? registry_.pin(a.handle) : nullptr;
  if (a.has_adapter && adapter == nullptr) return false;
  if (adapter != nullptr) {
    a.view = adapter->view();
    a.view.content = registry_.content(a.handle);
    a.seq.adapter_salt = adapter->digest();
    a.seq.adapter_from = adapter_from(*adapter, a.request.prompt);
    std::memcpy(&a.seq.adapter, a.seq.adapter_salt.data(), sizeof(a.seq.adapter));
  }
  a.seq.cache_salt = cache_salt(a.request);
  a.scheduled = true;
  scheduler_.add(a.seq);
  return true;
}

void EngineCore::cancel(RequestId id) {
  const auto at = requests_.find(id);
  if (at == requests_.end()) return;
  finish(*at->second, FinishReason::cancelled);
  update_counters();  // who asks next sees what it has freed, before a step
}

void EngineCore::cancel_all() {
  while (!requests_.empty()) finish(*requests_.begin()->second, FinishReason::cancelled);
  const Error stopping(Code::unavailable, "the server is shutting down");
  for (const Loading& load : std::exchange(loads_, {})) {
    registry_.release(load.handle);
    load.done(&stopping);
  }
}

bool EngineCore::step() {
  const auto start = Clock::now();
  admit();
  const StepPlan& plan = scheduler_.plan();
  counters_.preemptions += static_cast<int64_t>(plan.preempted.size());
  for (const Sequence* seq : plan.preempted) requests_.at(seq->id)->preempted = true;
  if (plan.chunks.empty()) {
    update_counters();
    return hear_ranks();
  }
  run(plan);
  const std::chrono::nanoseconds elapsed = Clock::now() - start;
  usual_step_ += (elapsed - usual_step_) / 8;
  const int64_t microseconds =
      std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count();
  counters_.step_microseconds += microseconds;
  counters_.milliseconds_of_steps.add((microseconds + 999) / 1000);
  ++counters_.steps;
  update_counters();
  return true;
}

void EngineCore::run(const StepPlan& plan) {
  batch_.clear();
  const auto now = Clock::now();
  int64_t n_tokens = 0;
  for (const Chunk& chunk : plan.chunks) {
    Active& a = *requests_.at(chunk.seq->id);
    if (!a.has_started) {
      a.has_started = true;
      a.started = now;
      counters_.prompt_tokens += a.seq.n_prompt;
      counters_.prefix_queries += a.seq.n_prompt;
      counters_.prefix_hits += a.seq.n_hit;
      a.request.sink->on_start();
    }
    if (!a.preempted) a.cached = a.seq.n_hit;
    batch_.add(chunk, a.view);
    n_tokens += chunk.n;
  }
  counters_.last_batch_tokens = n_tokens;
  counters_.last_batch_sequences = static_cast<int64_t>(plan.chunks.size());
  counters_.rows_of_steps.add(counters_.last_batch_tokens);
  counters_.sequences_of_steps.add(counters_.last_batch_sequences);
  const ForwardOutput out = leader_.forward(batch_.build(), batch_.views());
  deliver(plan, out);
}

void EngineCore::deliver(const StepPlan& plan, const ForwardOutput& out) {
  choices_.clear();
  scores_.clear();
  std::vector<Active*> computed;  // asked for their prompt alone, and have it
  for (const BatchEntry& entry : batch_.entries()) {
    const Chunk& chunk = *entry.chunk;
    Active& a = *requests_.at(chunk.seq->id);
    if (a.seq.wants_prompt_logits) deliver_prompt(a, entry, out);
    if (chunk.end() < static_cast<int32_t>(a.seq.tokens.size())) continue;
    if (a.request.max_new_tokens == 0) {
      computed.push_back(&a);
    } else {
      const int64_t n_rows = 1 + a.seq.n_draft;
      const int64_t first = entry.first_logit_row + chunk.n_logits - n_rows;
      Choice c{&a, rows(out.logits, first, n_rows), {}, {}, {}};
      if (a.view.medusa.shape.heads > 0) c.heads = rows_of_heads(out.speculative, first, n_rows);
      choices_.push_back(std::move(c));
    }
  }
  score_prompts();
  choose_tokens();  // first: the scores are warm, and the compute threads still awake
  scheduler_.commit(plan);
  for (Active* a : computed) finish(*a, FinishReason::length);
  for (Choice& c : choices_) take(c);
}

void EngineCore::deliver_prompt(Active& a, const BatchEntry& entry, const ForwardOutput& out) {
  const Chunk& chunk = *entry.chunk;
  const int32_t first = chunk.end() - chunk.n_logits;  // position of the first row with logits
  const auto row_of = [&](int32_t position) {
    return out.logits.row<const float>(entry.first_logit_row + position - first);
  };
  // Rows computed again after a preemption were delivered before.
  if (a.request.want_logits) {
    const int32_t from = std::max(first, a.logits_reported);
    const int32_t to = std::min(chunk.end(), a.seq.n_prompt);
    if (from < to) a.request.sink->on_logits(from, to - from, row_of(from), out.logits.pitch);
    a.logits_reported = std::max(a.logits_reported, to);
  }
  if (!a.request.prompt_logprobs) return;
  const int32_t end = std::min(chunk.end() + 1, a.seq.n_prompt);
  for (int32_t p = std::max(first + 1, a.prompt_reported); p < end; ++p) {
    scores_.push_back({&a, row_of(p - 1), p, {}});
    a.prompt_reported = p + 1;
  }
}

void EngineCore::score_prompts() {
  const auto vocab = static_cast<size_t>(model_.info.spec.vocab);
  model_.pool->for_each_thread(static_cast<int64_t>(scores_.size()), [&](int64_t i, int thread) {
    Score& s = scores_[static_cast<size_t>(i)];
    s.token = samplers_[static_cast<size_t>(thread)]->score(
        {s.logits, vocab}, s.active->request.sampling,
        s.active->seq.tokens[static_cast<size_t>(s.position)]);
  });
  for (const Score& s : scores_) s.active->request.sink->on_prompt_token({s.token, s.position});
}

// Sequences are independent, so they are spread over the compute threads.
void EngineCore::choose_tokens() {
  const auto n = static_cast<int64_t>(choices_.size());
  model_.pool->for_each_thread(n, [&](int64_t i, int thread) {
    choose(choices_[static_cast<size_t>(i)], *samplers_[static_cast<size_t>(thread)]);
  });
}

void EngineCore::choose(Choice& c, Sampler& sampler) {
  Active& a = *c.active;
  if (a.request.grammar && !a.constraint) {
    try {
      a.constraint.emplace(*a.request.grammar);
    } catch (const Error& e) {
      c.verified.error = e;
      return;
    }
  }
  c.verified =
      verify(sampler, a.request.sampling, a.seq, c.logits, a.constraint ? &*a.constraint : nullptr);
  if (!c.heads || c.verified.ended()) return;
  c.guesses = best_tokens(c.heads, c.verified.n_kept, a.view.medusa.shape.heads);
}

void EngineCore::take(Choice& c) {
  Active& a = *c.active;
  const Verified& got = c.verified;
  if (const int32_t n = a.seq.n_draft; n > 0) {
    counters_.draft_tokens += n;
    counters_.draft_tokens_kept += got.n_kept;
    a.view.medusa.shape.heads > 0 ? a.pace.learn(n, got.n_kept) : a.drafter->learn(n, got.n_kept);
    scheduler_.truncate(a.seq, a.seq.n_certain() + got.n_kept);
  }
  for (size_t i = 0; i < got.tokens.size(); ++i) {
    if (!accept(a, got.tokens[i], i < static_cast<size_t>(got.n_kept))) return;
  }
  if (!got.ended()) return draft(a, c.guesses);
  if (got.dead_end) return finish(a, FinishReason::dead_end);
  if (got.error) return finish(a, FinishReason::failed, got.error);
  ++counters_.nan_total;
  finish(a, FinishReason::failed,
         Error(Code::internal,
               "the model's scores hold NaN or infinity: its weights or the "
               "adapter's are broken for this input"));
}

// From the heads of its adapter, else from its own past.
void EngineCore::draft(Active& a, std::span<const int32_t> guesses) {
  // The last token of an answer is never computed, so a draft in its place would be for nothing.
  const int32_t room = a.seq.max_tokens - 1 - a.seq.n_certain();
  if (a.view.medusa.shape.heads > 0) {
    a.seq.n_draft = a.pace.length(std::min(static_cast<int32_t>(guesses.size()), room));
    const auto used = guesses.first(static_cast<size_t>(a.seq.n_draft));
    a.seq.tokens.insert(a.seq.tokens.end(), used.begin(), used.end());
    return;
  }
  const int32_t limit = std::min(options_.speculative_tokens, room);
  if (limit <= 0) return;
  if (!a.drafter) a.drafter = std::make_unique<NgramDrafter>(a.seq.max_tokens);
  a.seq.n_draft = a.drafter->propose(a.seq.tokens, limit);
}

bool EngineCore::accept(Active& a, const SampledToken& token, bool was_draft) {
  if (!a.has_token) {
    a.has_token = true;
    a.first_token = Clock::now();
  }
  const int64_t position = int64_t{a.seq.n_prompt} + a.generated;
  if (!was_draft) a.seq.tokens.push_back(token.id);
  ++a.generated;
  a.skipped += was_draft ? 1 : 0;
  ++counters_.generated_tokens;
  a.request.sink->on_token({token, position, was_draft});
  const auto is_in = [&](const std::vector<int32_t>& ids) {
    return std::find(ids.begin(), ids.end(), token.id) != ids.end();
  };
  const bool eos_ends = !a.request.ignore_eos || a.request.grammar != nullptr;
  if ((eos_ends && is_in(eos_ids_)) || is_in(a.request.stop_token_ids)) {
    finish(a, FinishReason::eos_token);
    return false;
  }
  if (a.stops) {
    std::string found = a.stops->push(token.id);
    if (!found.empty()) {
      finish(a, FinishReason::stop_sequence, {}, std::move(found));
      return false;
    }
  }
  if (a.generated < a.request.max_new_tokens) return true;
  finish(a, FinishReason::length);
  return false;
}

void EngineCore::finish(Active& a, FinishReason reason, std::optional<Error> error,
                        std::string stop_sequence) {
  const auto now = Clock::now();
  const auto started = a.has_started ? a.started : now;
  const auto first_token = a.has_token ? a.first_token : now;
  FinishEvent event;
  event.reason = reason;
  event.error = std::move(error);
  event.prompt_tokens = a.seq.n_prompt;
  event.cached_tokens = a.cached;
  event.generated_tokens = a.generated;
  event.skipped_tokens = a.skipped;
  event.stop_sequence = std::move(stop_sequence);
  event.queue_seconds = seconds(a.submitted, started);
  event.prefill_seconds = seconds(started, first_token);
  event.decode_seconds = seconds(first_token, now);
  if (a.scheduled) scheduler_.remove(a.seq);
  if (a.scheduled && a.has_adapter) registry_.unpin(a.handle);
  if (a.has_adapter) registry_.release(a.handle);
  ++(reason == FinishReason::failed ? counters_.failed : counters_.finished);
  const auto owned = requests_.extract(a.seq.id);
  released_();
  a.request.sink->on_finish(event);
}

void EngineCore::update_counters() {
  counters_.running = scheduler_.n_running();
  counters_.waiting = scheduler_.n_waiting();
  counters_.waiting_for_adapter = static_cast<int64_t>(unscheduled_.size());
  counters_.kv_blocks = scheduler_.pool().n_total();
  counters_.kv_blocks_free = scheduler_.pool().n_free();
  const Residency::Counts adapters = registry_.memory();
  set(counters_.adapters_device, adapters.device);
  set(counters_.adapters_host, adapters.host);
  counters_.adapter_load_failures = registry_.loads_failed();
}

}  // namespace lorry
