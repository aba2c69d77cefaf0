// `lorry serve` as a process: start, answer, end; and the demo model that it carries along.
#include <chrono>
#include <thread>

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/files.h"
#include "cli/demo.h"
#include "cli/process.h"

namespace lorry {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

namespace fs = std::filesystem;

class Socket {
 public:
  Socket() : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {}
  ~Socket() { close(fd_); }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  static sockaddr_in loopback(uint16_t port) {
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    a.sin_port = htons(port);
    return a;
  }
  // Any free port; returns it.
  uint16_t listen_somewhere() const {
    sockaddr_in a = loopback(0);
    socklen_t size = sizeof a;
    EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&a), size), 0);
    EXPECT_EQ(listen(fd_, 1), 0);
    EXPECT_EQ(getsockname(fd_, reinterpret_cast<sockaddr*>(&a), &size), 0);
    return ntohs(a.sin_port);
  }
  std::string ask(uint16_t port, const std::string& request) const {
    const sockaddr_in a = loopback(port);
    if (connect(fd_, reinterpret_cast<const sockaddr*>(&a), sizeof a) != 0) return "";
    EXPECT_EQ(send(fd_, request.data(), request.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(request.size()));
    std::string answer;
    std::array<char, 4096> buffer{};
    for (ssize_t n; (n = recv(fd_, buffer.data(), buffer.size(), 0)) > 0;) {
      answer.append(buffer.data(), static_cast<size_t>(n));
    }
    return answer;
  }

 private:
  int fd_;
};

std::string post(uint16_t port, const std::string& path, const std::string& body) {
  return Socket().ask(port, "POST " + path +
                                " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                                "Content-Type: application/json\r\nContent-Length: " +
                                std::to_string(body.size()) + "\r\n\r\n" + body);
}

// The port in "Try: curl http://127.0.0.1:PORT/...".
uint16_t port_of(const std::string& log) {
  const std::string before = "Try: curl http://127.0.0.1:";
  const size_t at = log.find(before);
  return at == log.npos ? uint16_t{0}
                        : static_cast<uint16_t>(std::stoi(log.substr(at + before.size())));
}

TEST(Serve, StartsWithThePlanAndEndsAtSigterm) {
  LorryProcess server({"serve", golden("mixtral-base/model"), "--lora-modules",
                       "x=" + golden("mixtral-base/adapters/attn-r8"), "--port", "0"});
  ASSERT_TRUE(server.wait_for("Try: ")) << server.err();
  EXPECT_THAT(server.err(), HasSubstr("memory: weights"));
  EXPECT_THAT(server.err(), HasSubstr("of rank 64 on attention and experts"));
  const uint16_t port = port_of(server.err());
  ASSERT_GT(port, 0) << server.err();
  const std::string answer =
      post(port, "/generate",
           R"({"inputs":"Hello","parameters":{"max_new_tokens":4,"adapter_id":"x"}})");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200")) << answer;
  EXPECT_THAT(answer, HasSubstr("generated_text"));
  server.signal(SIGTERM);
  const ProcessResult end = server.wait();
  EXPECT_EQ(end.status, 0) << end.err;
  EXPECT_EQ(end.out, "");
}

TEST(Serve, AddressesThatCannotBeUsedEndWithOneLine) {
  const Socket other;
  const std::string taken = std::to_string(other.listen_somewhere());
  const auto fails = [](const std::vector<std::string>& flags, const std::string& text) {
    std::vector<std::string> all = {"serve", golden("mixtral-base/model"), "--log-level", "off"};
    all.insert(all.end(), flags.begin(), flags.end());
    const ProcessResult r = run_lorry(all);
    EXPECT_EQ(r.status, 1);
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;
    EXPECT_THAT(r.err, HasSubstr(text));
  };
  fails({"--port", taken}, taken);
  fails({"--port", taken}, "choose another --port");
  fails({"--host", "no.such.host.invalid", "--port", "0"}, "no.such.host.invalid");
  fails({"--host", "203.0.113.1", "--port", "0"}, "203.0.113.1");
  fails({"--host", "203.0.113.1", "--port", "0"}, "--host must be an address of this machine");
  fails({"--uds", "/no/such/folder/socket"}, "--uds \"/no/such/folder/socket\"");
}

TEST(Serve, SettingsThatMakeNoSenseEndWithOneLine) {
  const TestFolder folder;
  const std::string config = folder.write("c.yaml", "colour: red\n");
  const std::string model = golden("mixtral-base/model");
  EXPECT_THAT(run_lorry({"serve", model, "--config", config}).err, HasSubstr("colour"));
  EXPECT_THAT(run_lorry({"serve", model, "--dtype", "int3"}).err, HasSubstr("int3"));
  EXPECT_THAT(run_lorry({"serve", model, "--log-level", "loud"}).err, HasSubstr("loud"));
  EXPECT_THAT(run_lorry({"serve", model}, {.env = {{"PORT", "x"}}}).err, HasSubstr("PORT"));
  const auto refused = [&](const char* flag, const std::string& value) {
    const ProcessResult wrong = run_lorry({"serve", model, flag, value});
    EXPECT_NE(wrong.status, 0) << flag;
    EXPECT_THAT(wrong.err, HasSubstr(flag));
  };
  refused("--validation-workers", "100000");
  refused("--shutdown-timeout", "nan");
  refused("--adapter-root", "/no/such/folder");
  refused("--lora-modules", "x=/no/such/folder");
  refused("--api-key-file", "/no/such/file");
  refused("--config", "/no/such/file");
  refused("--isa", "sse9");
  refused("--quantize", "int3");
  refused("--kv-tokens", "1T");
  EXPECT_THAT(run_lorry({"serve", model, "--kv-tokens", "16"}).err,
              HasSubstr("--kv-tokens 16: must be at least 32"));
  refused("--adapter-memory", "1T");
  refused("--max-batch-prefill-tokens", "1G");
  const std::string adapter = golden("mixtral-base/adapters/attn-r8");
  EXPECT_THAT(run_lorry({"serve", model, "--lora-modules", "a=" + adapter, "a=" + adapter}).err,
              HasSubstr("two adapters named"));
  EXPECT_THAT(
      run_lorry({"serve", model, "--lora-modules", "a=" + adapter, "--served-model-name", "a"}).err,
      HasSubstr("an adapter's name"));
  const ProcessResult r = run_lorry({"serve", model, "--max-total-tokens", "1G"});
  EXPECT_EQ(r.status, 1);
  EXPECT_THAT(r.err, HasSubstr("--max-total-tokens"));
}

TEST(Serve, DemoStartsInASecondAndItsOwnAdviceWorks) {
  run_lorry({"inspect", "demo"});  // unpacks it
  const auto start = std::chrono::steady_clock::now();
  LorryProcess server({"serve", "--port", "0"});
  ASSERT_TRUE(server.wait_for("Try: ")) << server.err();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  // What is promised is one second on a machine of its own; this one may be compiling beside it.
  EXPECT_LT(seconds.count(), 5);
  ASSERT_TRUE(server.wait_for("\n"));
  const std::string& log = server.err();
  const size_t body = log.find("-d '");
  ASSERT_NE(body, log.npos) << log;
  const size_t end = log.find('\'', body + 4);
  const std::string answer = post(port_of(log), "/generate", log.substr(body + 4, end - body - 4));
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200")) << answer;
}

TEST(Demo, BothModelsLoadWithTheirAdapters) {
  for (const char* model : {"demo", "demo:dbrx"}) {
    const ProcessResult r = run_lorry({"inspect", model});
    EXPECT_EQ(r.status, 0) << r.err;
    EXPECT_THAT(r.out, HasSubstr("adapter   json"));
    EXPECT_EQ(run_lorry({"inspect", "json", "--model", model}).status, 0);
  }
}

std::string only_folder(const std::string& root) {
  std::string found;
  for (const auto& entry : fs::directory_iterator(root)) {
    EXPECT_EQ(found, "") << "more than one";
    found = entry.path().string();
  }
  return found;
}

TEST(Demo, UnpacksOnceAndRepairsWhatWasChanged) {
  const TestFolder folder;
  std::string place;
  {
    const DemoFiles demo(folder.path("cache"), folder.path(""));
    place = demo.folder();
  }
  EXPECT_EQ(only_folder(folder.path("cache/lorry")), place);
  const std::string config = place + "/mixtral/config.json";
  const std::string before = read_file(config);
  const auto written = fs::last_write_time(config);
  EXPECT_EQ(DemoFiles(folder.path("cache"), folder.path("")).folder(), place);
  EXPECT_EQ(fs::last_write_time(config), written);

  write_file(config, std::string(before.size(), ' '));
  EXPECT_EQ(DemoFiles(folder.path("cache"), folder.path("")).folder(), place);
  EXPECT_EQ(read_file(config), before);

  // A link to the same content is not followed: it could point elsewhere a moment later.
  const std::string aside = folder.write("config.json", before);
  fs::remove(config);
  fs::create_symlink(aside, config);
  EXPECT_EQ(DemoFiles(folder.path("cache"), folder.path("")).folder(), place);
  EXPECT_FALSE(fs::is_symlink(config));
  EXPECT_EQ(only_folder(folder.path("cache/lorry")), place);
}

TEST(Demo, WithoutACacheFolderIsPrivateAndGoesAgain) {
  const TestFolder folder;
  const std::string file = folder.write("file", "");
  std::string place;
  {
    const DemoFiles demo(file + "/cache", folder.path(""));
    place = demo.folder();
    EXPECT_TRUE(file_exists(place + "/mixtral/config.json"));
  }
  EXPECT_FALSE(fs::exists(place));
  EXPECT_ANY_THROW(DemoFiles("", file + "/tmp"));
}

}  // namespace
}  // namespace lorry
