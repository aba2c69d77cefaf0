// URLs, the HTTP client by itself, locks and links.
#include <filesystem>
#include <thread>

#include <unistd.h>

#include "fetch/cache_files.h"
#include "fetch/fake_server.h"
#include "fetch/http_client.h"
#include "fetch/support.h"
#include "fetch/url.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

TEST(ParseUrl, gives_the_parts) {
  const Url url = parse_url("HTTPS://Example.COM/a%20b/../c?x=1&y=2#part", "it");
  EXPECT_EQ(url.scheme, "https");
  EXPECT_EQ(url.host, "example.com");
  EXPECT_EQ(url.port, "443");
  EXPECT_EQ(url.path, "/a%20b/../c");
  EXPECT_EQ(url.query, "x=1&y=2");
  EXPECT_EQ(url.text(), "https://example.com/a%20b/../c?x=1&y=2");
  EXPECT_EQ(url.shown(), "https://example.com/a%20b/../c");
  EXPECT_EQ(parse_url("http://[::1]:8080", "it").text(), "http://[::1]:8080/");
}

TEST(ParseUrl, refuses_what_is_not_the_web_and_does_not_repeat_it) {
  for (const std::string text : {"", "ftp://x/", "file:///etc/passwd", "/path", "http://",
                                 "http://user:secret@host/", "http://host:99999/", "http://a b/"}) {
    const Error error = error_of([&] { parse_url(text, "the endpoint"); });
    EXPECT_EQ(error.code(), Code::invalid_argument) << text;
    EXPECT_THAT(error.what(), Not(HasSubstr("secret")));
  }
}

TEST(RedirectTarget, tells_an_origin_from_another) {
  const Url from = parse_url("https://hub.example/a/b?x=1", "it");
  EXPECT_EQ(redirect_target(from, "/c d").text(), "https://hub.example/c%20d");
  EXPECT_EQ(redirect_target(from, "c").text(), "https://hub.example/a/c");
  EXPECT_TRUE(from.same_origin(redirect_target(from, "https://HUB.example:443/z")));
  EXPECT_FALSE(from.same_origin(redirect_target(from, "//other.example/z")));
  EXPECT_FALSE(from.same_origin(redirect_target(from, "https://hub.example:444/z")));
  EXPECT_FALSE(from.same_origin(redirect_target(from, "https://hub.example.evil/z")));
  EXPECT_FALSE(parse_url("http://h:443/", "it").same_origin(parse_url("https://h:443/", "it")));
  for (const std::string to : {"http://hub.example/a/b", "file:///x", "https://u:p@hub.example/"}) {
    EXPECT_EQ(error_of([&] { redirect_target(from, to); }).code(), Code::unavailable) << to;
  }
}

class Http : public testing::Test {
 protected:
  FetchResponse get(const std::string& path, size_t max_body_bytes = 1000) {
    return HttpClient(network_, deadline_)
        .send({.url = server_.origin() + path, .max_body_bytes = max_body_bytes});
  }
  NetworkOptions network_ = fast_network();
  Deadline deadline_{"it", std::chrono::seconds(20), nullptr};
  FakeServer server_;
};

TEST_F(Http, an_answer_has_status_headers_and_body) {
  server_.start([](const ServerRequest& r) {
    return ServerReply{.status = 404, .headers = {{"X-A", " b "}}, .body = r.method + r.path};
  });
  const FetchResponse response = get("/x?secret=1");
  EXPECT_EQ(response.status, 404);
  EXPECT_EQ(response.failure, "");
  EXPECT_FALSE(response.retryable);
  EXPECT_EQ(response.header("x-a"), "b");
  EXPECT_EQ(response.content_length(), 5);
  EXPECT_EQ(response.body, "GET/x");
  EXPECT_EQ(response.describe(), server_.origin() + "/x: answered 404");
}

TEST_F(Http, bodies_and_headers_are_limited) {
  server_.start([](const ServerRequest& r) {
    ServerReply reply{.body = std::string(2000, 'x')};
    if (r.path == "/chunks") reply.declared = -2;
    if (r.path == "/error") reply.status = 500;
    if (r.path == "/headers") {
      for (int i = 0; i < 300; ++i) reply.headers["h" + std::to_string(i)] = std::string(1000, 'x');
    }
    return reply;
  });
  EXPECT_EQ(get("/x", 2000).body.size(), 2000U);
  for (const std::string path : {"/x", "/chunks", "/headers"}) {
    EXPECT_EQ(error_of([&] { get(path, 1999); }).code(), Code::bad_file) << path;
  }
  EXPECT_EQ(get("/error").status, 500);  // its text is not needed
}

TEST_F(Http, what_is_not_http_is_a_failure) {
  server_.start(
      [](const ServerRequest&) { return ServerReply{.ending = ServerReply::Ending::reset}; });
  server_.stop();
  const FetchResponse response = get("/x?secret=1");
  EXPECT_EQ(response.status, 0);
  EXPECT_TRUE(response.retryable);
  EXPECT_THAT(response.describe(), testing::StartsWith(server_.origin() + "/x: "));
}

TEST(Deadline, ends_a_nap_and_refuses_a_sleep_that_is_too_long) {
  const Deadline deadline("it", std::chrono::milliseconds(50), nullptr);
  EXPECT_FALSE(deadline.sleep(std::chrono::seconds(5)));
  EXPECT_TRUE(deadline.sleep(std::chrono::milliseconds(1)));
  EXPECT_EQ(error_of([&] { deadline.nap(std::chrono::seconds(5)); }).code(), Code::unavailable);
  const std::atomic<bool> yes{true};
  const Deadline cancelled("it", std::chrono::seconds(5), &yes);
  EXPECT_THAT(error_of([&] { cancelled.check(); }).what(), HasSubstr("cancelled"));
}

using CacheFiles = FolderTest;

TEST_F(CacheFiles, a_lock_is_held_by_one) {
  const Deadline patient("it", std::chrono::seconds(20), nullptr);
  const Deadline hasty("it", std::chrono::milliseconds(120), nullptr);
  auto lock = std::make_unique<FileLock>(path("x.lock"), patient);
  const Error error = error_of([&] { const FileLock second(path("x.lock"), hasty); });
  EXPECT_EQ(error.code(), Code::unavailable);
  EXPECT_THAT(error.what(), HasSubstr("x.lock"));
  std::thread waiter([&] { const FileLock third(path("x.lock"), patient); });
  lock.reset();
  waiter.join();
  EXPECT_TRUE(file_exists(path("x.lock")));
}

TEST_F(CacheFiles, a_lock_file_that_was_removed_is_made_again) {
  const Deadline deadline("it", std::chrono::seconds(20), nullptr);
  const auto first = std::make_unique<FileLock>(path("x.lock"), deadline);
  fs::remove(path("x.lock"));
  const FileLock second(path("x.lock"), deadline);
  EXPECT_TRUE(file_exists(path("x.lock")));
}

TEST(LinkOwners, strangers_are_not_trusted) {
  EXPECT_TRUE(is_trusted_link({.link = 5, .folder = 7, .self = 5}));
  EXPECT_TRUE(is_trusted_link({.link = 0, .folder = 7, .self = 5}));
  EXPECT_TRUE(is_trusted_link({.link = 7, .folder = 7, .self = 5}));
  EXPECT_FALSE(is_trusted_link({.link = 6, .folder = 7, .self = 5}));
}

TEST_F(CacheFiles, G6_a_link_of_another_user_is_one_line) {
  write_file(path("x"), "12345");
  fs::create_symlink("x", path("link"));
  EXPECT_EQ(file_size_of(path("link")), 5);
  fs::create_symlink("absent", path("broken"));
  EXPECT_EQ(file_size_of(path("broken")), -1);
  EXPECT_EQ(file_size_of(folder_), -1);
  if (lchown(path("link").c_str(), 12345, 12345) == 0) {  // as root only
    const Error error = error_of([&] { file_size_of(path("link")); });
    EXPECT_EQ(error.code(), Code::invalid_argument);
    EXPECT_THAT(error.what(), HasSubstr("user 12345"));
  }
}

TEST_F(CacheFiles, a_link_replaces_what_is_there) {
  write_file(path("x"), "1");
  write_file(path("y"), "22");
  make_link("x", path("link"));
  make_link("x", path("link"));
  EXPECT_EQ(file_size_of(path("link")), 1);
  make_link("y", path("link"));
  EXPECT_EQ(file_size_of(path("link")), 2);
  fs::create_directory(path("folder"));
  EXPECT_EQ(error_of([&] { make_link("x", path("folder")); }).code(), Code::invalid_argument);
}

TEST_F(CacheFiles, a_partial_file_goes_on_and_is_moved_when_whole) {
  const auto bytes = [](std::string_view s) { return std::as_bytes(std::span(s)); };
  {
    PartialFile(path("p")).write(bytes("abc"));
  }
  PartialFile file(path("p"));
  EXPECT_EQ(file.size(), 3);
  file.write(bytes("def"));
  file.commit(path("q"));
  EXPECT_EQ(read_file(path("q")), "abcdef");
  EXPECT_FALSE(file_exists(path("p")));
  EXPECT_EQ(error_of([&] { PartialFile(path("no/folder")); }).code(), Code::invalid_argument);
  EXPECT_EQ(error_of([&] { const PartialFile folder(folder_); }).code(), Code::invalid_argument);
}

}  // namespace
}  // namespace lorry
