#include "serve/metrics.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>
#include <mutex>
#include <vector>

#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "serve/generation.h"
#include "serve/tracing.h"

namespace lorry {

namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::map<std::string, std::string>;

// Adapters named in one metric; the rest are counted as "other".
constexpr size_t kMaxAdapterLabels = 64;

double to_seconds(Metrics::Duration time) { return std::chrono::duration<double>(time).count(); }

std::vector<double> time_buckets() {
  return {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
          1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  320, 640};
}

std::vector<double> token_buckets() {
  return {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
}

const char* reason_label(FinishReason reason) {
  switch (reason) {
    case FinishReason::length:
      return "length";
    case FinishReason::eos_token:
    case FinishReason::stop_sequence:
    case FinishReason::dead_end:
      return "stop";
    case FinishReason::cancelled:
      return "abort";
    case FinishReason::failed:
      break;
  }
  return "error";
}

ClientMetric metric_of(MetricType type, double value, const Labels& labels) {
  ClientMetric metric;
  for (const auto& [key, text] : labels) metric.label.push_back({key, text});
  if (type == MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  return metric;
}

MetricFamily single(const char* name, const char* help, MetricType type, double value,
                    const Labels& labels) {
  return {name, help, type, {metric_of(type, value, labels)}};
}

// Of steps of the engine. `scale`: of what was counted, in the metric's unit.
MetricFamily steps_family(const char* name, const char* help, const StepHistogram& steps,
                          double scale, const Labels& labels) {
  ClientMetric metric = metric_of(MetricType::Gauge, 0, labels);
  uint64_t total = 0;
  for (size_t i = 0; i < steps.counts.size(); ++i) {
    total += static_cast<uint64_t>(steps.counts[i]);
    const bool last = i + 1 == steps.counts.size();
    const double bound = last ? std::numeric_limits<double>::infinity()
                              : scale * static_cast<double>(int64_t{1} << i);
    metric.histogram.bucket.push_back({total, bound});
  }
  metric.histogram.sample_count = total;
  metric.histogram.sample_sum = scale * static_cast<double>(steps.sum);
  return {name, help, MetricType::Histogram, {std::move(metric)}};
}

// Where adapters are, and how much they come and go.
void add_tiers(std::vector<MetricFamily>& all, const EngineStats& stats) {
  using Tier = EngineStats::AdapterTier;
  const auto add = [&](const char* name, const char* help, MetricType type, int64_t Tier::* value) {
    MetricFamily family{name, help, type, {}};
    for (const auto& [tier, of] :
         {std::pair{"device", &stats.adapters_device}, std::pair{"host", &stats.adapters_host}}) {
      family.metric.push_back(metric_of(type, static_cast<double>(of->*value), {{"tier", tier}}));
    }
    all.push_back(std::move(family));
  };
  add("lorry_adapter_memory_bytes", "Memory for adapters", MetricType::Gauge, &Tier::bytes);
  add("lorry_adapter_memory_used_bytes", "Of it in use", MetricType::Gauge, &Tier::used_bytes);
  add("lorry_adapter_loads_total", "Adapters brought there", MetricType::Counter, &Tier::loads);
  add("lorry_adapter_evictions_total", "Adapters that gave way", MetricType::Counter,
      &Tier::evictions);
}

}  // namespace

struct Metrics::Impl {
  Impl(const std::string& model, int64_t most)
      : labels{{"model_name", model}}, max_adapters(most) {}

  prometheus::Counter& counter(const char* name, const char* help, const Labels& with = {}) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(with);
  }
  prometheus::Histogram& histogram(const char* name, const char* help, const Labels& with,
                                   const std::vector<double>& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(with, buckets);
  }
  prometheus::Histogram& times(const char* name, const char* help, const Labels& with = {}) {
    return histogram(name, help, with, time_buckets());
  }
  prometheus::Histogram& tokens(const char* name, const char* help, const Labels& with = {}) {
    return histogram(name, help, with, token_buckets());
  }
  MetricFamily adapters_family();

  Labels labels;
  prometheus::Registry registry;
  prometheus::Counter& requests = counter("lorax_request_count", "Generation requests received");
  prometheus::Counter& successes = counter("lorax_request_success", "Requests answered in full");
  prometheus::Counter& unknown_fields =
      counter("lorry_unknown_fields_total", "Fields of requests that were ignored");
  prometheus::Histogram& validation =
      times("lorax_request_validation_duration", "Seconds of parsing and tokenising");
  prometheus::Histogram& duration = times("lorax_request_duration", "Seconds, receipt to answer");
  prometheus::Histogram& queue =
      times("lorax_request_queue_duration", "Seconds before the first step");
  prometheus::Histogram& inference =
      times("lorax_request_inference_duration", "Seconds of computing");
  prometheus::Histogram& per_token =
      times("lorax_request_mean_time_per_token_duration", "Seconds of computing per token");
  prometheus::Histogram& generated =
      tokens("lorax_request_generated_tokens", "Tokens of an answer");
  prometheus::Histogram& skipped =
      tokens("lorax_request_skipped_tokens", "Tokens of an answer that were drafts");
  prometheus::Histogram& input = tokens("lorax_request_input_length", "Tokens of a prompt");
  prometheus::Histogram& most_new =
      tokens("lorax_request_max_new_tokens", "Tokens asked for at most");

  prometheus::Histogram& ttft =
      times("vllm:time_to_first_token_seconds", "Receipt to first token", labels);
  prometheus::Histogram& itl =
      times("vllm:inter_token_latency_seconds", "Between two tokens", labels);
  prometheus::Histogram& e2e = times("vllm:e2e_request_latency_seconds", "Receipt to end", labels);
  prometheus::Histogram& queue_time =
      times("vllm:request_queue_time_seconds", "In the queue", labels);
  prometheus::Histogram& prefill_time =
      times("vllm:request_prefill_time_seconds", "First step to first token", labels);
  prometheus::Histogram& decode_time =
      times("vllm:request_decode_time_seconds", "First token to last", labels);
  prometheus::Histogram& inference_time =
      times("vllm:request_inference_time_seconds", "First step to last token", labels);
  prometheus::Histogram& prompt_tokens =
      tokens("vllm:request_prompt_tokens", "Tokens of a prompt", labels);
  prometheus::Histogram& generation_tokens =
      tokens("vllm:request_generation_tokens", "Tokens of an answer", labels);

  struct AdapterCounts {
    int64_t waiting = 0, running = 0;
  };
  std::mutex mutex;
  std::map<std::string, AdapterCounts> adapters;
  const int64_t max_adapters;
  std::atomic<int64_t> reserved_tokens{0};
};

Metrics::Metrics(const std::string& model, int64_t max_adapters)
    : impl_(std::make_unique<Impl>(model, max_adapters)) {}
Metrics::~Metrics() = default;

void Metrics::received() { impl_->requests.Increment(); }

void Metrics::failed(std::string_view type) {
  impl_
      ->counter("lorax_request_failure", "Requests not answered in full",
                {{"err", std::string(type)}})
      .Increment();
}

void Metrics::validated(Duration time) { impl_->validation.Observe(to_seconds(time)); }
void Metrics::first_token(Duration time) { impl_->ttft.Observe(to_seconds(time)); }
void Metrics::next_token(Duration time) { impl_->itl.Observe(to_seconds(time)); }
void Metrics::unknown_field() { impl_->unknown_fields.Increment(); }

void Metrics::succeeded(const Results& results) {
  impl_->successes.Increment();
  const double total = to_seconds(std::chrono::steady_clock::now() - results.job.received);
  impl_->duration.Observe(total);
  impl_->e2e.Observe(total);
  impl_->most_new.Observe(static_cast<double>(results.job.request.max_new_tokens));
  for (const Answer& answer : results.answers) {
    const FinishEvent& finish = *answer.finish;
    const double inference = finish.prefill_seconds + finish.decode_seconds;
    const auto n = static_cast<double>(answer.tokens.size());
    const auto prompt = static_cast<double>(results.job.prompts[answer.prompt].ids.size());
    impl_->queue.Observe(finish.queue_seconds);
    impl_->queue_time.Observe(finish.queue_seconds);
    impl_->inference.Observe(inference);
    impl_->inference_time.Observe(inference);
    impl_->prefill_time.Observe(finish.prefill_seconds);
    impl_->decode_time.Observe(finish.decode_seconds);
    if (n > 0) impl_->per_token.Observe(inference / n);
    impl_->generated.Observe(n);
    impl_->skipped.Observe(finish.skipped_tokens);
    impl_->generation_tokens.Observe(n);
    impl_->input.Observe(prompt);
    impl_->prompt_tokens.Observe(prompt);
    Labels with = impl_->labels;
    with["finished_reason"] = reason_label(finish.reason);
    impl_->counter("vllm:request_success_total", "Finished sequences", with).Increment();
  }
}

void Metrics::reserve(int64_t tokens) { impl_->reserved_tokens.fetch_add(tokens); }

void Metrics::adapter_waits(const std::string& name) {
  if (name.empty()) return;
  std::lock_guard lock(impl_->mutex);
  ++impl_->adapters[name].waiting;
}

void Metrics::adapter_runs(const std::string& name) {
  if (name.empty()) return;
  std::lock_guard lock(impl_->mutex);
  auto& counts = impl_->adapters[name];
  --counts.waiting;
  ++counts.running;
}

void Metrics::adapter_done(const std::string& name, bool had_run) {
  if (name.empty()) return;
  std::lock_guard lock(impl_->mutex);
  const auto found = impl_->adapters.find(name);
  if (found == impl_->adapters.end()) return;
  --(had_run ? found->second.running : found->second.waiting);
  if (found->second.running + found->second.waiting == 0) impl_->adapters.erase(found);
}

MetricFamily Metrics::Impl::adapters_family() {
  std::string running;
  std::string waiting;
  std::lock_guard lock(mutex);
  size_t named = 0;
  bool other_running = false;
  bool other_waiting = false;
  const auto append = [](std::string& list, const std::string& name) {
    list += (list.empty() ? "" : ",") + name;
  };
  for (const auto& [name, counts] : adapters) {
    const bool shown = named++ < kMaxAdapterLabels;
    if (shown && counts.running > 0) append(running, name);
    if (shown && counts.waiting > 0) append(waiting, name);
    other_running |= !shown && counts.running > 0;
    other_waiting |= !shown && counts.waiting > 0;
  }
  if (other_running) append(running, "other");
  if (other_waiting) append(waiting, "other");
  const double now =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  return single("vllm:lora_requests_info",
                "Adapters of requests with and without a first token; the value is unix time",
                MetricType::Gauge, now,
                {{"max_lora", std::to_string(max_adapters)},
                 {"running_lora_adapters", running},
                 {"waiting_lora_adapters", waiting}});
}

std::string Metrics::expose(const EngineStats& stats, const Tracing* tracing) const {
  const Labels& labels = impl_->labels;
  std::vector<MetricFamily> all = impl_->registry.Collect();
  const auto add = [&](const char* name, const char* help, MetricType type, auto value,
                       const Labels& with) {
    all.push_back(single(name, help, type, static_cast<double>(value), with));
  };
  // Prefill and decode are the same step.
  const Labels step = {{"method", "step"}};
  constexpr auto gauge = MetricType::Gauge;
  constexpr auto count = MetricType::Counter;
  const double blocks = static_cast<double>(std::max<int64_t>(stats.kv_blocks, 1));
  const int64_t waiting = stats.waiting + stats.waiting_for_adapter;
  add("lorax_queue_length", "Requests in the queue", gauge, waiting, {});
  add("lorax_batch_current_size", "Sequences being computed", gauge, stats.running, {});
  add("lorax_batch_inference_count", "Steps of the engine", count, stats.steps, step);
  add("lorax_batch_inference_success", "Steps of the engine that ended", count, stats.steps, step);
  add("lorax_batch_current_max_tokens", "Tokens that the requests with a first token may grow to",
      gauge, impl_->reserved_tokens.load(), {});
  all.push_back(steps_family("lorax_batch_inference_duration", "Seconds of a step",
                             stats.milliseconds_of_steps, 1e-3, step));
  all.push_back(steps_family("lorax_batch_next_size", "Sequences of a step",
                             stats.sequences_of_steps, 1, {}));
  all.push_back(steps_family("vllm:iteration_tokens_total", "Rows of a step", stats.rows_of_steps,
                             1, labels));
  add("lorry_step_seconds_total", "Time in steps", count, stats.step_seconds, {});
  add("lorry_nan_total", "Sequences ended by NaN", count, stats.nan_total, {});
  add("vllm:num_requests_running", "Being computed", gauge, stats.running, labels);
  add("vllm:num_requests_waiting", "In the queue", gauge, waiting, labels);
  add("vllm:kv_cache_usage_perc", "1 is full", gauge,
      static_cast<double>(stats.kv_blocks - stats.kv_blocks_free) / blocks, labels);
  add("vllm:num_preemptions_total", "Preemptions", count, stats.preemptions, labels);
  add("vllm:prompt_tokens_total", "Prompt tokens computed", count, stats.prompt_tokens, labels);
  add("vllm:generation_tokens_total", "Tokens generated", count, stats.generated_tokens, labels);
  add("vllm:spec_decode_num_draft_tokens_total", "Drafts verified", count, stats.draft_tokens,
      labels);
  add("vllm:spec_decode_num_accepted_tokens_total", "Drafts kept", count, stats.draft_tokens_kept,
      labels);
  add("vllm:prefix_cache_queries_total", "Tokens looked up", count, stats.prefix_queries, labels);
  add("vllm:prefix_cache_hits_total", "Tokens found", count, stats.prefix_hits, labels);
  add("vllm:cache_config_info", "Of the KV cache", gauge, 1,
      {{"block_size", std::to_string(kBlockTokens)},
       {"num_gpu_blocks", std::to_string(stats.kv_blocks)}});
  add("lorry_adapter_load_failures_total", "Adapters that could not be loaded", count,
      stats.adapter_load_failures, {});
  add("lorry_requests_parked_total", "Times that a request stepped aside for another adapter",
      count, stats.parked, {});
  if (tracing != nullptr) {
    add("lorry_spans_sent_total", "Spans that a collector took", count, tracing->sent(), {});
    add("lorry_spans_dropped_total", "Spans that it did not", count, tracing->dropped(), {});
  }
  add_tiers(all, stats);
  all.push_back(impl_->adapters_family());
  return prometheus::TextSerializer().Serialize(all);
}

}  // namespace lorry
