// Spans of requests for an OpenTelemetry collector, as OTLP/HTTP JSON. A span waits in a bounded
// queue for a thread that sends; a collector that is slow or away costs spans, never a request.
// No span holds a prompt, an answer, a key or a token.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"

namespace lorry {

// What a request's W3C `traceparent` header says.
struct TraceParent {
  std::string trace_id;  // 32 lower-case hex digits
  std::string span_id;   // 16
  bool sampled = false;
};
// Empty where it is not one of version 00, or has only zeros.
std::optional<TraceParent> parse_traceparent(std::string_view header);

// One answered request. Times are unix time in nanoseconds.
struct Span {
  std::optional<TraceParent> parent;
  std::string request_id, route, model, adapter, tenant;
  std::string outcome;  // "ok", or an error type
  int64_t start = 0, end = 0;
  int64_t prompt_tokens = 0, generated_tokens = 0;
  double queue_seconds = 0, first_token_seconds = 0;
};

// The body of one request to a collector.
std::string otlp_json(const std::vector<Span>& spans);

class Tracing {
 public:
  // Sends one body; true when the collector took it. Called on the sending thread only, and returns
  // within seconds.
  using Send = std::function<bool(const std::string& body)>;

  explicit Tracing(Send send);
  ~Tracing();  // sends what is queued, for as long as that works
  Tracing(const Tracing&) = delete;
  Tracing& operator=(const Tracing&) = delete;

  // Any thread; never waits. A span whose parent is not sampled is none.
  void add(Span span);
  int64_t sent() const { return sent_.load(); }
  int64_t dropped() const { return dropped_.load(); }

 private:
  void run();

  const Send send_;
  BoundedQueue<Span> queue_;
  std::atomic<int64_t> sent_{0}, dropped_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;  // last: it uses the others
};

}  // namespace lorry
