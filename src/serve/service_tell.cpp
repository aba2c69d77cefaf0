// What Service tells about requests that have ended: to the log, and to a collector of traces.
#include <algorithm>
#include <chrono>

#include "serve/service.h"
#include "serve/tracing.h"

namespace lorry {

namespace {

constexpr size_t kMaxLabel = 128;  // of a merge's name

double seconds_between(std::chrono::steady_clock::time_point from,
                       std::chrono::steady_clock::time_point to) {
  return to == std::chrono::steady_clock::time_point{}
             ? 0.0
             : std::chrono::duration<double>(to - from).count();
}

}  // namespace

void Service::tell(const Call& call, const Results& results, std::string_view outcome) const {
  if (!options_.log_requests && options_.tracing == nullptr) return;
  Span span;
  span.request_id = call.id;
  span.route = call.request.path;
  span.model = results.job.model;
  span.adapter = results.job.request.adapter.label().substr(0, kMaxLabel);
  span.tenant = call.tenant->name();
  span.outcome = std::string(outcome);
  span.prompt_tokens = results.prompt_tokens();
  span.generated_tokens = results.generated_tokens();
  for (const Answer& answer : results.answers) {
    if (answer.finish) {
      span.queue_seconds = std::max(span.queue_seconds, answer.finish->queue_seconds);
    }
  }
  const auto now = std::chrono::steady_clock::now();
  span.first_token_seconds = seconds_between(results.job.received, results.first_token);
  const double total = seconds_between(results.job.received, now);
  if (!results.started) span.queue_seconds = total;
  if (options_.log_requests) {
    log_.record("request", {{"id", span.request_id},
                            {"route", span.route},
                            {"key", span.tenant},
                            {"adapter", span.adapter},
                            {"outcome", span.outcome},
                            {"prompt_tokens", span.prompt_tokens},
                            {"generated_tokens", span.generated_tokens},
                            {"queue_s", span.queue_seconds},
                            {"first_token_s", span.first_token_seconds},
                            {"total_s", total}});
  }
  if (options_.tracing == nullptr) return;
  span.parent = parse_traceparent(call.request.header("traceparent"));
  // The wall clock only names the end; how long it took is the steady clock's.
  span.end = std::chrono::duration_cast<std::chrono::nanoseconds>(
                 std::chrono::system_clock::now().time_since_epoch())
                 .count();
  span.start = span.end - static_cast<int64_t>(total * 1e9);
  options_.tracing->add(std::move(span));
}

}  // namespace lorry
