#include "fetch/fake_server.h"

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

namespace lorry {

namespace {

bool send_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return true;
}

// The head of the next request, without its last empty line; empty at the end.
std::string read_head(int fd, std::string& rest) {
  size_t end = std::string::npos;
  while ((end = rest.find("\r\n\r\n")) == std::string::npos) {
    char buffer[4096];
    const ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n <= 0) return {};
    rest.append(buffer, static_cast<size_t>(n));
  }
  std::string head = rest.substr(0, end + 2);
  rest.erase(0, end + 4);
  return head;
}

ServerRequest parse_head(const std::string& head) {
  ServerRequest request;
  const size_t first = head.find(' ');
  const size_t second = head.find(' ', first + 1);
  request.method = head.substr(0, first);
  request.path = head.substr(first + 1, second - first - 1);
  if (const size_t mark = request.path.find('?'); mark != std::string::npos) {
    request.query = request.path.substr(mark + 1);
    request.path.resize(mark);
  }
  for (size_t at = head.find("\r\n") + 2; at < head.size();) {
    const size_t end = head.find("\r\n", at);
    const size_t colon = head.find(": ", at);
    std::string name = head.substr(at, colon - at);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    request.headers[name] = head.substr(colon + 2, end - colon - 2);
    at = end + 2;
  }
  return request;
}

}  // namespace

std::string ServerRequest::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? "" : found->second;
}

LocalListener::LocalListener() : fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(listen(fd, 64), 0);
  EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  port = ntohs(address.sin_port);
}

FakeServer::FakeServer() {
  setenv("no_proxy", "127.0.0.1", 1);  // whatever the machine is set to
}

FakeServer::~FakeServer() {
  stop();
  close(listener_.fd);
}

void FakeServer::start(Handler handler) {
  handler_ = std::move(handler);
  acceptor_ = std::thread([this] { accept_forever(); });
}

void FakeServer::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    for (const int fd : open_) shutdown(fd, SHUT_RDWR);
  }
  changed_.notify_all();
  shutdown(listener_.fd, SHUT_RDWR);
  if (acceptor_.joinable()) acceptor_.join();
  for (std::thread& t : connections_) t.join();
  connections_.clear();
}

std::string FakeServer::origin() const {
  return fmt::format("http://127.0.0.1:{}", listener_.port);
}

std::vector<ServerRequest> FakeServer::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

size_t FakeServer::count(const std::string& method, const std::string& part) const {
  const std::lock_guard lock(mutex_);
  return static_cast<size_t>(
      std::count_if(requests_.begin(), requests_.end(), [&](const ServerRequest& r) {
        return r.method == method && r.path.find(part) != std::string::npos;
      }));
}

void FakeServer::forget_requests() {
  const std::lock_guard lock(mutex_);
  requests_.clear();
}

bool FakeServer::wait_for(size_t n, const std::string& method, const std::string& part) {
  for (int i = 0; i < 1000 && count(method, part) < n; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return count(method, part) >= n;
}

void FakeServer::accept_forever() {
  for (;;) {
    const int fd = accept4(listener_.fd, nullptr, nullptr, SOCK_CLOEXEC);
    const std::lock_guard lock(mutex_);
    if (fd < 0 || stopped_) {
      if (fd >= 0) close(fd);
      return;
    }
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    open_.insert(fd);
    connections_.emplace_back([this, fd] { serve(fd); });
  }
}

void FakeServer::serve(int fd) {
  std::string rest;
  for (;;) {
    const std::string head = read_head(fd, rest);
    if (head.empty()) break;
    const ServerRequest request = parse_head(head);
    {
      const std::lock_guard lock(mutex_);
      requests_.push_back(request);
    }
    if (!answer(fd, request)) break;
  }
  const std::lock_guard lock(mutex_);
  open_.erase(fd);
  close(fd);
}

bool FakeServer::answer(int fd, const ServerRequest& request) {
  const ServerReply reply = handler_(request);
  const auto wait = [this](std::chrono::milliseconds duration) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, duration, [this] { return stopped_; });
  };
  if (reply.delay.count() > 0) wait(reply.delay);
  std::string head = fmt::format("HTTP/1.1 {} Status\r\n", reply.status);
  for (const auto& [name, value] : reply.headers) head += name + ": " + value + "\r\n";
  if (reply.declared != -2 && reply.headers.count("Content-Length") == 0) {
    const auto size = static_cast<int64_t>(reply.body.size());
    head += fmt::format("Content-Length: {}\r\n", reply.declared >= 0 ? reply.declared : size);
  }
  if (!send_all(fd, head + "\r\n")) return false;
  std::string_view body = reply.body;
  if (reply.send_bytes >= 0) body = body.substr(0, static_cast<size_t>(reply.send_bytes));
  if (request.method == "HEAD") body = {};
  while (!body.empty()) {
    const size_t n =
        reply.piece_delay.count() > 0 ? std::min<size_t>(body.size(), 1000) : body.size();
    if (!send_all(fd, body.substr(0, n))) return false;
    body.remove_prefix(n);
    if (reply.piece_delay.count() > 0) wait(reply.piece_delay);
  }
  if (reply.ending == ServerReply::Ending::reset) {
    // What was sent must arrive before the reset does.
    wait(std::chrono::milliseconds(50));
    const linger now{.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }
  if (reply.ending == ServerReply::Ending::hang) wait(std::chrono::minutes(1));
  return reply.ending == ServerReply::Ending::keep_alive && reply.declared != -2;
}

}  // namespace lorry
