// Which pages and hosts may ask; the names are rows of the list of bad inputs, section A.
#include "serve/server_test_base.h"

namespace lorry {
namespace {

using testing::HasSubstr;

class HttpOrigin : public ServerTest {};

TEST_F(HttpOrigin, A13_no_cross_origin_headers_are_sent) {
  const Reply reply =
      raw("GET /health HTTP/1.1\r\nHost: localhost\r\n"
          "Origin: http://localhost:8080\r\n\r\n");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.count("access-control-allow-origin"), 0U);
}

TEST_F(HttpOrigin, A13_listed_origins_may_read_answers) {
  options.cors_origins = {"https://chat.example"};
  options.keys = {parse_api_key("a:key", 1)};
  const auto ask = [&](const std::string& method, const std::string& origin,
                       const std::string& more = "") {
    return raw(method + " /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: " + origin + "\r\n" +
               more + "\r\n");
  };
  Reply reply = ask("GET", "https://chat.example", "X-Api-Key: key\r\n");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("access-control-allow-origin"), "https://chat.example");
  EXPECT_EQ(reply.headers.at("vary"), "origin");
  EXPECT_EQ(reply.headers.count("access-control-allow-credentials"), 0U);
  // Browsers send no key with a preflight; its answer tells nothing but the rules.
  const std::string preflight = "Access-Control-Request-Method: POST\r\n";
  Client client(port());
  client.send("OPTIONS /generate HTTP/1.1\r\nHost: localhost\r\nOrigin: https://chat.example\r\n" +
              preflight + "\r\n");
  reply = client.read_head();
  EXPECT_EQ(reply.status, 204);
  EXPECT_THAT(reply.headers.at("access-control-allow-headers"), HasSubstr("authorization"));
  EXPECT_EQ(reply.headers.count("content-length"), 0U);
  EXPECT_EQ(client.get("/health").status, 200);  // no body followed it
  // An error can be read too, and others get nothing.
  EXPECT_EQ(ask("GET", "https://chat.example").headers.count("access-control-allow-origin"), 1U);
  reply = ask("OPTIONS", "https://evil.example", preflight);
  EXPECT_EQ(reply.status, 403);
  EXPECT_EQ(reply.headers.count("access-control-allow-origin"), 0U);
  EXPECT_EQ(ask("OPTIONS", "http://localhost", preflight).status, 401);
}

TEST_F(HttpOrigin, A13_a_star_lets_every_page_read_and_sends_no_origin_back) {
  options.cors_origins = {"*"};
  const Reply reply =
      raw("GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: https://x.example\r\n\r\n");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.headers.at("access-control-allow-origin"), "*");
}

TEST_F(HttpOrigin, A14_a_foreign_host_or_origin_is_403_on_loopback) {
  options.allowed_hosts = {"lorry.example"};
  EXPECT_EQ(raw("GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n").status, 403);
  EXPECT_EQ(raw("GET /health HTTP/1.1\r\nHost: 127.0.0.1.evil.example\r\n\r\n").status, 403);
  EXPECT_EQ(
      raw("GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n\r\n").status,
      403);
  EXPECT_EQ(raw("GET /health HTTP/1.1\r\nHost: lorry.example\r\n\r\n").status, 200);
  for (const char* host : {"localhost:3000", "127.0.0.1:80", "[::1]:3000", "localhost"}) {
    EXPECT_EQ(raw(std::string("GET /health HTTP/1.1\r\nHost: ") + host + "\r\n\r\n").status, 200);
  }
}

}  // namespace
}  // namespace lorry
