// Spans for a collector: their form, and that a collector's faults stay its own.
#include "serve/tracing.h"

#include <future>

#include <boost/json/serialize.hpp>

#include "serve/server_test_base.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(TraceParents, are_read_as_w3c_writes_them) {
  const auto parent = parse_traceparent(kParent);
  ASSERT_TRUE(parent);
  EXPECT_EQ(parent->trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(parent->span_id, "00f067aa0ba902b7");
  EXPECT_TRUE(parent->sampled);
  EXPECT_FALSE(
      parse_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")->sampled);
  for (const char* wrong : {"", "00", "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
                            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
                            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
                            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
                            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x"}) {
    EXPECT_FALSE(parse_traceparent(wrong)) << wrong;
  }
}

TEST(Spans, are_otlp_json) {
  Span span;
  span.parent = parse_traceparent(kParent);
  span.route = "/generate";
  span.outcome = "ok";
  span.start = 1'700'000'000'000'000'000;
  span.prompt_tokens = 7;
  const json::value body = parse_json(otlp_json({span, Span()}), "body");
  const json::array& spans = body.at_pointer("/resourceSpans/0/scopeSpans/0/spans").as_array();
  ASSERT_EQ(spans.size(), 2U);
  EXPECT_EQ(spans[0].at("traceId").as_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(spans[0].at("parentSpanId").as_string(), "00f067aa0ba902b7");
  EXPECT_EQ(spans[0].at("spanId").as_string().size(), 16U);
  EXPECT_EQ(spans[0].at("startTimeUnixNano").as_string(), "1700000000000000000");
  EXPECT_EQ(spans[1].at("traceId").as_string().size(), 32U);
  EXPECT_FALSE(spans[1].as_object().contains("parentSpanId"));
  EXPECT_THAT(json::serialize(spans[0]),
              HasSubstr(R"({"key":"gen_ai.usage.input_tokens","value":{"intValue":"7"}})"));
}

TEST(Spans, of_a_collector_that_hangs_are_dropped_and_counted) {
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  {
    Tracing tracing([&](const std::string&) {
      released.wait();
      return false;
    });
    for (int i = 0; i < 10'000; ++i) tracing.add(Span());  // returns at once
    EXPECT_GE(tracing.dropped(), 10'000 - 4096 - 256 - 1);
    release.set_value();
  }
}

TEST(Spans, whose_parent_is_not_sampled_are_not_sent) {
  std::atomic<int> sends{0};
  {
    Tracing tracing([&](const std::string&) { return ++sends > 0; });
    Span span;
    span.parent = parse_traceparent(kParent);
    span.parent->sampled = false;
    tracing.add(std::move(span));
  }
  EXPECT_EQ(sends, 0);
}

class Traced : public ServerTest {};

TEST_F(Traced, every_request_is_a_span_without_its_content) {
  std::mutex mutex;
  std::string bodies;
  Tracing tracing([&](const std::string& body) {
    std::lock_guard lock(mutex);
    bodies += body;
    return true;
  });
  options.tracing = &tracing;
  options.keys = {parse_api_key("alice:the-key", 1)};
  const std::string headers = std::string("X-Api-Key: the-key\r\ntraceparent: ") + kParent + "\r\n";
  EXPECT_EQ(Client(port())
                .post("/v1/completions", R"({"prompt":"Hidden words","model":"pirate"})", headers)
                .status,
            200);
  EXPECT_TRUE(eventually([&] { return tracing.sent() == 1; }));
  {
    std::lock_guard lock(mutex);
    for (const char* text : {"4bf92f3577b34da6a3ce929d0e0e4736", "/v1/completions", "pirate",
                             "alice", R"("stringValue":"ok")"}) {
      EXPECT_THAT(bodies, HasSubstr(text));
    }
    for (const char* text : {"Hidden", "Hello", "the-key"})
      EXPECT_THAT(bodies, Not(HasSubstr(text)));
  }
  Client client(port());
  client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: the-key\r\n\r\n");
  EXPECT_THAT(client.read_reply().body, HasSubstr("lorry_spans_sent_total 1"));
  stop_server();
}

}  // namespace
}  // namespace lorry
