// The HTTP layer; the names are rows of the list of bad inputs, section A.
#include <thread>

#include "serve/http_head.h"
#include "serve/http_parser.h"
#include "serve/server_test_base.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr const char* kBody = R"({"inputs":"hi"})";

class Http : public ServerTest {};

TEST_F(Http, keep_alive_serves_several_requests) {
  Client client(port());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(client.get("/health").status, 200);
    EXPECT_EQ(client.post("/generate", kBody).status, 200);
  }
}

TEST_F(Http, requests_sent_ahead_are_answered_in_order) {
  Client client(port());
  client.send_post("/generate", kBody);
  client.send("GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_THAT(client.read_reply().body, HasSubstr("generated_text"));
  EXPECT_THAT(client.read_reply().body, HasSubstr("version"));
}

TEST_F(Http, connection_close_and_http10_close) {
  Client client(port());
  client.send("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  const Reply reply = client.read_reply();
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("connection"), "close");
  EXPECT_TRUE(client.at_end());
  Client old(port());
  old.send("GET /health HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.read_reply().status, 200);
  EXPECT_TRUE(old.at_end());
}

TEST_F(Http, http10_streams_until_the_connection_closes) {
  const std::string body = R"({"inputs":"hi"})";
  Client client(port());
  client.send(
      "POST /generate_stream HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body);
  const Reply reply = client.read_reply();
  EXPECT_EQ(reply.headers.count("transfer-encoding"), 0U);
  EXPECT_GT(events_of(reply.body).size(), 3U);
}

TEST_F(Http, head_is_get_without_a_body) {
  Client client(port());
  client.send("HEAD /version HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const Reply head = client.read_head();
  EXPECT_EQ(head.status, 200);
  EXPECT_NE(head.headers.at("content-length"), "0");
  EXPECT_EQ(client.get("/health").status, 200);  // nothing was left over
}

TEST_F(Http, chunked_bodies_are_read) {
  Client client(port());
  client.send(
      "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n");
  for (const char c : std::string(kBody)) client.send(std::string("1;ext=1\r\n") + c + "\r\n");
  client.send("0\r\n\r\n");
  EXPECT_EQ(client.read_reply().status, 200);
  EXPECT_EQ(client.get("/health").status, 200);
}

// A byte at a time, as the last chunk reaches a parser that asserts how much of it there is.
TEST(Parser, takes_chunks_in_pieces_of_any_size) {
  const std::string head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const std::string data : {"", "1\r\n0\r\n", "3\r\n0\r\n\r\n"}) {
    for (const std::string end : {"0\r\n\r\n", "0\r\na: b\r\n\r\n", "000\r\n\r\n"}) {
      for (const size_t piece : {1, 2, 3, 4, 5, 6, 100}) {
        RequestParser parser({});
        size_t used = 0;
        ASSERT_EQ(parser.take_head(head, &used).status, 0);
        std::string waiting;
        const std::string all = data + end;
        for (size_t at = 0; at < all.size(); at += piece) {
          waiting += all.substr(at, piece);
          ASSERT_EQ(parser.take_body(waiting, &used).status, 0) << all << " by " << piece;
          waiting.erase(0, used);
          EXPECT_EQ(parser.done(), at + piece >= all.size()) << all << " by " << piece;
        }
        EXPECT_EQ(waiting, "");
      }
    }
  }
}

TEST_F(Http, expect_100_continue_is_answered) {
  Client client(port());
  client.send(
      "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Expect: 100-continue\r\nContent-Length: 15\r\n\r\n");
  EXPECT_THAT(client.read_until("\r\n\r\n"), StartsWith("HTTP/1.1 100"));
  client.send(kBody);
  EXPECT_EQ(client.read_reply().status, 200);
}

TEST_F(Http, A1_a_header_that_is_too_large_is_431) {
  EXPECT_EQ(
      raw("GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + std::string(20000, 'a') + "\r\n\r\n")
          .status,
      431);
  std::string fields;
  for (int i = 0; i < 101; ++i) fields += "x" + std::to_string(i) + ": 1\r\n";
  EXPECT_EQ(raw("GET /health HTTP/1.1\r\n" + fields + "\r\n").status, 431);
  EXPECT_EQ(raw("GET /" + std::string(9000, 'a') + " HTTP/1.1\r\nHost: localhost\r\n\r\n").status,
            414);
  EXPECT_EQ(raw("GET /" + std::string(60000, 'a')).status, 414);
}

TEST_F(Http, A2_a_body_that_is_too_large_is_413) {
  const std::string head =
      "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
  Reply reply = raw(head + "Content-Length: 2000001\r\n\r\n");
  EXPECT_EQ(reply.status, 413);
  EXPECT_EQ(reply.headers.at("connection"), "close");
  EXPECT_THAT(reply.body, HasSubstr(R"("error_type":"validation")"));
  reply = raw(head + "Transfer-Encoding: chunked\r\n\r\n" + "1E8481\r\n");
  EXPECT_EQ(reply.status, 413);
  // The client that sends it all before reading gets the answer too, not a reset.
  reply = raw(head + "Content-Length: 3000000\r\n\r\n" + std::string(3000000, 'a'));
  EXPECT_EQ(reply.status, 413);
}

TEST_F(Http, A3_a_content_encoding_is_415) {
  EXPECT_EQ(raw("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\n"
                "Content-Type: application/json\r\nContent-Length: 1\r\n\r\nx")
                .status,
            415);
}

TEST_F(Http, A4_hostile_chunks_are_refused) {
  const std::string head =
      "POST /generate HTTP/1.1\r\nHost: localhost\r\n"
      "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_EQ(raw(head + "FFFFFFFFFFFFFFFF\r\nx").status, 413);
  EXPECT_EQ(raw(head + "FFFFFFFFFFFFFFFFF\r\nx").status, 400);
  EXPECT_EQ(raw(head + "x\r\n").status, 400);
  EXPECT_EQ(raw(head + "1;" + std::string(100000, 'e')).status, 413);
  std::string many;
  for (int i = 0; i < 100000; ++i) many += "1\r\n \r\n";
  many += "2\r\n{}\r\n0\r\n\r\n";
  EXPECT_EQ(raw(head + many).status, 422);  // whole and parsed: `inputs` is missing
}

TEST_F(Http, A5_a_slow_header_is_408) {
  options.http.head_seconds = 0.3;
  Client client(port());
  const auto begin = std::chrono::steady_clock::now();
  client.send("GET /health HT");
  EXPECT_EQ(client.read_reply().status, 408);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(3));
  EXPECT_TRUE(client.at_end());
}

TEST_F(Http, A6_a_slow_body_is_408) {
  options.http.body_grace_seconds = 0.3;
  Client client(port());
  client.send(
      "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
      "Content-Length: 1000\r\n\r\n{");
  std::thread trickle([&] {
    for (int i = 0; i < 20; ++i) {
      if (!client.send(" ")) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  });
  EXPECT_EQ(client.read_reply().status, 408);
  trickle.join();
}

TEST_F(Http, an_idle_connection_is_closed_without_an_answer) {
  options.http.idle_seconds = 0.2;
  Client client(port());
  EXPECT_EQ(client.get("/health").status, 200);
  EXPECT_TRUE(client.at_end());
}

TEST_F(Http, A7_a_client_that_does_not_read_is_cut_off) {
  options.http.send_buffer_bytes = 4096;
  backend.set_plan([&](const Request& request) {
    Script script = backend.say("Hello", request);
    script.tokens.pop_back();
    script.never_ends = true;
    return script;
  });
  Client client(port());
  client.send_post("/generate_stream", R"({"inputs":"hi","parameters":{"max_new_tokens":200}})");
  EXPECT_TRUE(eventually([&] { return backend.submitted().size() == 1; }));
  EXPECT_TRUE(eventually([&] { return backend.cancelled() == 1 && backend.running() == 0; }));
}

TEST_F(Http, A8_idle_connections_do_not_slow_others) {
  std::vector<std::unique_ptr<Client>> idle;
  for (int i = 0; i < 300; ++i) {
    idle.push_back(std::make_unique<Client>(port()));
    EXPECT_TRUE(idle.back()->connected());
  }
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(get("/health").status, 200);
  EXPECT_EQ(get("/metrics").status, 200);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(1));
}

TEST_F(Http, more_connections_than_allowed_are_503) {
  options.http.max_connections = 2;
  Client first(port());
  Client second(port());
  EXPECT_EQ(first.get("/health").status, 200);
  EXPECT_EQ(second.get("/health").status, 200);
  Client third(port());
  EXPECT_EQ(third.read_reply().status, 503);
}

TEST_F(Http, A9_ambiguous_messages_are_400_and_closed) {
  const std::string post =
      "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
  const std::vector<std::string> bad = {
      post + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
      post + "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
      post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
      post + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
      post + "Content-Length: +2\r\n\r\n{}",
      post + "Content-Length: 2, 2\r\n\r\n{}",
      post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
      post + "Transfer-Encoding: identity\r\n\r\n",
      "GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n",
      "GET /health HTTP/1.1\nHost: localhost\n\n",
      "GET /health HTTP/1.1\r\nHost: localhost\nX: 1\r\n\r\n",
      "GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n",
      "GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
      "GET /health HTTP/1.1\r\nNo-Host: 1\r\n\r\n",
      "GET  /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
      "GET /health HTTP/2.0\r\nHost: localhost\r\n\r\n",
      "\x16\x03\x01\x02\r\n\r\n",
  };
  for (const std::string& bytes : bad) {
    Client client(port());
    client.send(bytes);
    const Reply reply = client.read_reply();
    EXPECT_EQ(reply.status, 400) << bytes;
    EXPECT_TRUE(client.at_end()) << bytes;
  }
}

TEST_F(Http, A10_control_bytes_in_headers_are_refused_and_not_echoed) {
  EXPECT_EQ(
      raw(std::string("GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x01") + "b\r\n\r\n").status,
      400);
  EXPECT_EQ(raw(std::string("GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n")).status,
            400);
  EXPECT_EQ(raw(std::string("GET /a\0b HTTP/1.1\r\nHost: localhost\r\n\r\n", 38)).status, 400);
}

TEST_F(Http, A11_unknown_path_wrong_method_wrong_type) {
  Reply reply = get("/nothing");
  EXPECT_EQ(reply.status, 404);
  EXPECT_THAT(reply.body, HasSubstr(R"("error_type":"not_found")"));
  reply = get("/v1/nothing");
  EXPECT_EQ(reply.status, 404);
  EXPECT_THAT(reply.body, HasSubstr(R"("type":"invalid_request_error")"));
  reply = get("/generate");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers.at("allow"), "POST");
  reply = raw("DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers.at("allow"), "GET, POST");
  for (const char* type : {"Content-Type: text/plain\r\n", ""}) {
    EXPECT_EQ(raw(std::string("POST /generate HTTP/1.1\r\nHost: localhost\r\n") + type +
                  "Content-Length: 15\r\n\r\n" + kBody)
                  .status,
              415);
  }
}

TEST_F(Http, A12_no_path_leads_to_a_file) {
  for (const char* path : {"/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..\\..\\etc\\passwd",
                           "/v1/models/../../etc/passwd", "/v1/models/%2e%2e%2fetc", "//health"}) {
    EXPECT_EQ(get(path).status, 404) << path;
  }
}

TEST_F(Http, A16_an_address_that_cannot_be_used_is_an_error) {
  options.http.port = port();
  try {
    Server second(options, log);
    FAIL() << "two servers on one port";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::invalid_argument);
    EXPECT_THAT(e.what(), HasSubstr(std::to_string(options.http.port)));
  }
  options.http.host = "no such host";
  EXPECT_THROW(Server(options, log), Error);
}

TEST_F(Http, every_answer_has_a_request_id) {
  EXPECT_EQ(Client(port())
                .post("/generate", kBody, "X-Request-Id: mine-1\r\n")
                .headers.at("x-request-id"),
            "mine-1");
  EXPECT_EQ(get("/health").headers.at("x-request-id").size(), 32U);
  EXPECT_EQ(get("/nothing").headers.count("x-request-id"), 1U);
  EXPECT_EQ(raw("nonsense\r\n\r\n").headers.count("x-request-id"), 1U);
  const std::string long_id = std::string(200, 'a');
  EXPECT_NE(Client(port())
                .post("/generate", kBody, "X-Request-Id: " + long_id + "\r\n")
                .headers.at("x-request-id"),
            long_id);
}

TEST(HttpHead, percent_decoding) {
  std::string out;
  EXPECT_TRUE(percent_decode("org%2Fname", &out));
  EXPECT_EQ(out, "org/name");
  EXPECT_TRUE(percent_decode("%41", &out));
  EXPECT_FALSE(percent_decode("a%4", &out));
  EXPECT_FALSE(percent_decode("a%zz", &out));
}

}  // namespace
}  // namespace lorry
