// The web page as it is served; tests/web tests what it does in a browser.
#include <regex>
#include <set>

#include "serve/server_test_base.h"
#include "serve/web_page.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr const char* kBrowser =
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n";

class Web : public ServerTest {
 protected:
  static Reply ask_at(uint16_t port, const std::string& line, const std::string& headers = "") {
    Client client(port);
    client.send(line + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers + "\r\n");
    Reply reply = client.read_head();
    if (!line.starts_with("HEAD") && reply.status != 304) {
      reply.body = client.read_bytes(std::stoul(reply.headers.at("content-length")));
    }
    EXPECT_TRUE(client.at_end()) << line;  // nothing follows
    return reply;
  }
  Reply ask(const std::string& line, const std::string& headers = "") {
    return ask_at(port(), line, headers);
  }
  Reply page() { return ask("GET /", kBrowser); }

  // The page's other files: what any of its files names.
  std::set<std::string> assets() {
    std::set<std::string> found;
    const std::string html = page().body;
    const std::regex name(R"re("(/web/[^"]+)")re");
    for (std::sregex_iterator at(html.begin(), html.end(), name), end; at != end; ++at) {
      found.insert((*at)[1]);
    }
    return found;
  }
};

TEST_F(Web, is_for_those_who_accept_html) {
  const Reply html = page();
  EXPECT_EQ(html.status, 200);
  EXPECT_EQ(html.headers.at("content-type"), "text/html; charset=utf-8");
  EXPECT_EQ(html.headers.at("vary"), "accept");
  EXPECT_THAT(html.body, StartsWith("<!doctype html>"));
  EXPECT_EQ(ask("GET /?from=a-link", "accept: TEXT/HTML\r\n").body, html.body);
  for (const char* accept : {"", "Accept: */*\r\n", "Accept: application/json\r\n"}) {
    const Reply text = ask("GET /", accept);
    EXPECT_EQ(text.status, 200);
    EXPECT_THAT(text.headers.at("content-type"), StartsWith("text/plain"));
    EXPECT_THAT(text.body, HasSubstr("tiny"));
  }
  // As LoRAX's clients know it.
  EXPECT_EQ(post("/", R"({"inputs":"hi"})").status, 200);
  EXPECT_EQ(Client(port()).post("/", R"({"inputs":"hi"})", kBrowser).status, 200);
  EXPECT_EQ(ask("DELETE /", kBrowser).headers.at("allow"), "GET, POST");
}

TEST_F(Web, files_have_their_types_and_forbid_what_the_page_does_not_need) {
  const std::map<std::string, std::string> types = {{".js", "text/javascript; charset=utf-8"},
                                                    {".css", "text/css; charset=utf-8"},
                                                    {".svg", "image/svg+xml"}};
  std::set<std::string> paths = assets();
  EXPECT_GE(paths.size(), 8U);
  paths.insert("/");
  for (const std::string& path : paths) {
    const Reply reply = ask("GET " + path, kBrowser);
    EXPECT_EQ(reply.status, 200) << path;
    if (path != "/") {
      EXPECT_EQ(reply.headers.at("content-type"), types.at(path.substr(path.find('.')))) << path;
    }
    const std::string policy = reply.headers.at("content-security-policy");
    EXPECT_THAT(policy, StartsWith("default-src 'none'; script-src 'self'; style-src 'self'"));
    EXPECT_THAT(policy, HasSubstr("frame-ancestors 'none'"));
    EXPECT_THAT(policy, HasSubstr("require-trusted-types-for 'script'"));
    EXPECT_THAT(policy, Not(HasSubstr("unsafe")));
    EXPECT_EQ(reply.headers.at("x-content-type-options"), "nosniff");
    EXPECT_EQ(reply.headers.at("referrer-policy"), "no-referrer");
    EXPECT_EQ(reply.headers.at("cache-control"), "no-cache");
    EXPECT_EQ(reply.headers.count("x-request-id"), 1U);
  }
}

TEST_F(Web, names_nothing_elsewhere) {
  std::set<std::string> paths = assets();
  paths.insert("/");
  for (const std::string& path : paths) {
    std::string body = ask("GET " + path, kBrowser).body;
    const std::string name_of_svg = "http://www.w3.org/2000/svg";
    if (const size_t at = body.find(name_of_svg); at != std::string::npos) {
      body.erase(at, name_of_svg.size());
    }
    EXPECT_THAT(body, Not(HasSubstr("//www"))) << path;
    EXPECT_THAT(body, Not(HasSubstr("http:"))) << path;
    EXPECT_THAT(body, Not(HasSubstr("https:"))) << path;
    EXPECT_THAT(body, Not(HasSubstr("innerHTML"))) << path;
  }
}

TEST_F(Web, what_a_browser_has_is_not_sent_again) {
  for (const char* path : {"/", "/web/app.js"}) {
    const std::string get = std::string("GET ") + path;
    const std::string etag = ask(get, kBrowser).headers.at("etag");
    for (const std::string& known : {etag, "W/" + etag, "\"x\", " + etag, std::string("*")}) {
      const Reply reply = ask(get, kBrowser + ("If-None-Match: " + known + "\r\n"));
      EXPECT_EQ(reply.status, 304) << known;
      EXPECT_EQ(reply.headers.at("etag"), etag);
      EXPECT_EQ(reply.headers.at("cache-control"), "no-cache");
      EXPECT_EQ(reply.headers.count("content-length"), 0U);
    }
    EXPECT_EQ(ask(get, kBrowser + std::string("If-None-Match: \"x\"\r\n")).status, 200);
  }
  EXPECT_NE(ask("GET /web/app.js").headers.at("etag"), ask("GET /web/api.js").headers.at("etag"));
}

TEST_F(Web, a_304_leaves_the_connection_usable) {
  Client client(port());
  client.send("GET /web/app.js HTTP/1.1\r\nHost: localhost\r\nIf-None-Match: *\r\n\r\n");
  EXPECT_EQ(client.read_head().status, 304);
  EXPECT_EQ(client.get("/health").status, 200);
}

TEST_F(Web, head_has_everything_but_the_body) {
  for (const char* path : {"/", "/web/style.css"}) {
    const Reply get = ask(std::string("GET ") + path, kBrowser);
    Reply head = ask(std::string("HEAD ") + path, kBrowser);
    EXPECT_EQ(head.status, 200);
    EXPECT_EQ(head.headers.at("content-length"), std::to_string(get.body.size()));
    head.headers["x-request-id"] = get.headers.at("x-request-id");
    EXPECT_EQ(head.headers, get.headers);
  }
}

TEST_F(Web, files_are_only_read) {
  for (const char* method : {"POST", "PUT", "DELETE"}) {
    const Reply reply = ask(std::string(method) + " /web/app.js");
    EXPECT_EQ(reply.status, 405) << method;
    EXPECT_EQ(reply.headers.at("allow"), "GET");
  }
}

TEST_F(Web, A12_no_path_leads_to_another_file) {
  for (const char* path :
       {"/web", "/web/", "/web/nothing.js", "/web/index.html", "/web/app.js/", "/web//app.js",
        "/web/./app.js", "/web/../web/app.js", "/web/../../etc/passwd", "/web/..\\..\\etc\\passwd",
        "/web/%2e%2e/%2e%2e/etc/passwd", "/web/..%2f..%2fetc%2fpasswd", "/web/app.js%00",
        "/web/%61pp.js", "/web/app.js%20", "/WEB/app.js", "/index.html", "/app.js",
        "/web//etc/passwd"}) {
    EXPECT_EQ(ask(std::string("GET ") + path, kBrowser).status, 404) << path;
  }
  EXPECT_EQ(ask(std::string("GET /web/app.js") + '\0', kBrowser).status, 400);
}

TEST_F(Web, can_be_switched_off) {
  const std::set<std::string> paths = assets();
  stop_server();
  options.web = false;
  EXPECT_THAT(page().headers.at("content-type"), StartsWith("text/plain"));
  for (const std::string& path : paths) EXPECT_EQ(ask("GET " + path).status, 404) << path;
}

TEST_F(Web, needs_no_key_and_gives_none_of_what_needs_one) {
  options.keys = {parse_api_key("alice:key-of-alice", 1)};
  EXPECT_EQ(page().status, 200);
  for (const std::string& path : assets()) EXPECT_EQ(ask("GET " + path).status, 200) << path;
  EXPECT_EQ(ask("HEAD /", kBrowser).status, 200);
  for (const char* path : {"/web/", "/web/nothing.js", "/info", "/v1/models", "/docs"}) {
    EXPECT_EQ(ask(std::string("GET ") + path, kBrowser).status, 401) << path;
  }
  EXPECT_EQ(ask("GET /").status, 401);
  EXPECT_EQ(ask("POST /", kBrowser).status, 401);
  EXPECT_THAT(page().body, Not(HasSubstr("tiny")));
}

TEST_F(Web, with_keys_and_switched_off_is_401) {
  options.keys = {parse_api_key("alice:key-of-alice", 1)};
  options.web = false;
  EXPECT_EQ(page().status, 401);
  EXPECT_EQ(ask("GET /web/app.js").status, 401);
}

TEST_F(Web, A14_is_not_for_foreign_hosts) {
  const auto from = [](uint16_t port, const char* headers) {
    Client client(port);
    client.send(std::string("GET / HTTP/1.1\r\n") + headers + kBrowser + "\r\n");
    return client.read_reply().status;
  };
  Server loading(options, log);
  loading.start();
  for (const uint16_t at : {port(), loading.port()}) {
    EXPECT_EQ(from(at, "Host: evil.example\r\n"), 403);
    EXPECT_EQ(from(at, "Host: localhost\r\nOrigin: http://evil.example\r\n"), 403);
    EXPECT_EQ(from(at, "Host: localhost\r\n"), 200);
  }
}

TEST_F(Web, is_there_while_the_model_is_loaded) {
  Server loading(options, log);
  loading.start();
  EXPECT_EQ(ask_at(loading.port(), "GET /", kBrowser).body, page().body);
  EXPECT_EQ(ask_at(loading.port(), "GET /web/app.js").status, 200);
  EXPECT_EQ(ask_at(loading.port(), "GET /").status, 503);
  EXPECT_EQ(ask_at(loading.port(), "GET /web/nothing.js").status, 503);
}

TEST_F(Web, programs_learn_at_the_same_path_whether_the_server_works) {
  backend.set_stuck(1000);
  EXPECT_EQ(ask("GET /").status, 503);
  EXPECT_EQ(page().status, 200);
}

TEST_F(Web, the_models_examples_are_in_the_information) {
  EXPECT_EQ(get("/info").json().at("example_prompts").as_array().size(), 0U);
  stop_server();
  options.example_prompts = {"Who are you?", "<b>\"</b>"};
  const json::value info = get("/info").json();
  EXPECT_EQ(info.at("example_prompts").as_array().at(1).as_string(), "<b>\"</b>");
}

}  // namespace
}  // namespace lorry
