#include "serve/tracing.h"

#include <algorithm>

#include "serve/intake.h"
#include "serve/json_writer.h"

namespace lorry {

namespace {

constexpr size_t kQueue = 4096;
constexpr size_t kBatch = 256;

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

void write_text(JsonWriter& json, const char* key, const std::string& value) {
  json.begin_object().member("key", key).key("value").begin_object();
  json.member("stringValue", value).end_object().end_object();
}

// 64-bit integers are strings in OTLP's JSON.
void write_count(JsonWriter& json, const char* key, int64_t value) {
  json.begin_object().member("key", key).key("value").begin_object();
  json.member("intValue", std::to_string(value)).end_object().end_object();
}

void write_seconds(JsonWriter& json, const char* key, double value) {
  json.begin_object().member("key", key).key("value").begin_object();
  json.member("doubleValue", value).end_object().end_object();
}

void write_span(JsonWriter& json, const Span& span) {
  constexpr int kServer = 2;
  json.begin_object();
  json.member("traceId", span.parent ? span.parent->trace_id : random_id());
  json.member("spanId", random_id().substr(0, 16));
  if (span.parent) json.member("parentSpanId", span.parent->span_id);
  json.member("name", span.route).member("kind", kServer);
  json.member("startTimeUnixNano", std::to_string(span.start));
  json.member("endTimeUnixNano", std::to_string(span.end));
  json.key("attributes").begin_array();
  write_text(json, "gen_ai.request.id", span.request_id);
  write_text(json, "gen_ai.request.model", span.model);
  if (!span.adapter.empty()) write_text(json, "lorry.adapter", span.adapter);
  if (!span.tenant.empty()) write_text(json, "lorry.key", span.tenant);
  write_text(json, "lorry.outcome", span.outcome);
  write_count(json, "gen_ai.usage.input_tokens", span.prompt_tokens);
  write_count(json, "gen_ai.usage.output_tokens", span.generated_tokens);
  write_seconds(json, "gen_ai.latency.time_in_queue", span.queue_seconds);
  write_seconds(json, "gen_ai.latency.time_to_first_token", span.first_token_seconds);
  json.end_array().key("status").begin_object();
  json.member("code", span.outcome == "ok" ? 1 : 2).end_object().end_object();
}

}  // namespace

std::optional<TraceParent> parse_traceparent(std::string_view header) {
  // 00-<trace>-<span>-<flags>
  if (header.size() != 55 || !header.starts_with("00-") || header[35] != '-' || header[52] != '-') {
    return std::nullopt;
  }
  const std::string_view trace = header.substr(3, 32);
  const std::string_view span = header.substr(36, 16);
  const std::string_view flags = header.substr(53, 2);
  if (!is_hex(trace) || !is_hex(span) || !is_hex(flags) || is_zero(trace) || is_zero(span)) {
    return std::nullopt;
  }
  const char last = flags[1];
  const int low = last <= '9' ? last - '0' : last - 'a' + 10;
  return TraceParent{std::string(trace), std::string(span), (low & 1) != 0};
}

std::string otlp_json(const std::vector<Span>& spans) {
  JsonWriter json;
  json.begin_object().key("resourceSpans").begin_array().begin_object();
  json.key("resource").begin_object().key("attributes").begin_array();
  write_text(json, "service.name", "lorry");
  json.end_array().end_object();
  json.key("scopeSpans").begin_array().begin_object();
  json.key("scope").begin_object().member("name", "lorry").end_object();
  json.key("spans").begin_array();
  for (const Span& span : spans) write_span(json, span);
  json.end_array().end_object().end_array().end_object().end_array().end_object();
  return json.take();
}

Tracing::Tracing(Send send) : send_(std::move(send)), queue_(kQueue), thread_([this] { run(); }) {}

Tracing::~Tracing() {
  stopping_.store(true);
  queue_.close();
  thread_.join();
}

void Tracing::add(Span span) {
  if (span.parent && !span.parent->sampled) return;
  if (!queue_.try_push(std::move(span))) dropped_.fetch_add(1);
}

void Tracing::run() {
  bool works = true;
  while (auto first = queue_.pop()) {
    std::vector<Span> batch;
    batch.push_back(std::move(*first));
    while (batch.size() < kBatch) {
      auto next = queue_.try_pop();
      if (!next) break;
      batch.push_back(std::move(*next));
    }
    // At the end nobody waits for a collector that is away.
    if (works || !stopping_.load()) works = send_(otlp_json(batch));
    (works ? sent_ : dropped_).fetch_add(static_cast<int64_t>(batch.size()));
  }
}

}  // namespace lorry
