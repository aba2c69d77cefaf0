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
  const Want want = takes_best_alone(plan) ? Want::best : Want::logits;
  const ForwardOutput out = leader_.forward(batch_.build(want), batch_.views());
  deliver(plan, out);
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
