// A blocking HTTP client over a plain socket: what it sends is what the test wrote.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/json.h"

namespace lorry {

struct Reply {
  int status = 0;  // 0: the connection ended without an answer
  std::map<std::string, std::string> headers;
  std::string body;
  json::value json() const { return parse_json(body, "the reply"); }
};

class Client {
 public:
  explicit Client(uint16_t port, int timeout_seconds = 20) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    timeval timeout{timeout_seconds, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { close(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // False when the server has closed the connection.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  // One more piece of input; empty at the end or after the timeout.
  std::string receive() {
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    return n > 0 ? std::string(buffer, static_cast<size_t>(n)) : std::string();
  }
  bool at_end() { return rest_.empty() && receive().empty(); }

  // Up to and including `mark`; what there is when the input ends before.
  std::string read_until(std::string_view mark) {
    size_t at = std::string::npos;
    while ((at = rest_.find(mark)) == std::string::npos) {
      const std::string more = receive();
      if (more.empty()) return std::exchange(rest_, {});
      rest_ += more;
    }
    std::string out = rest_.substr(0, at + mark.size());
    rest_.erase(0, at + mark.size());
    return out;
  }
  std::string read_bytes(size_t n) {
    while (rest_.size() < n) {
      const std::string more = receive();
      if (more.empty()) break;
      rest_ += more;
    }
    std::string out = rest_.substr(0, n);
    rest_.erase(0, out.size());
    return out;
  }

  Reply read_head() {
    Reply reply;
    const std::string head = read_until("\r\n\r\n");
    if (!head.starts_with("HTTP/1.1 ")) return reply;
    reply.status = std::stoi(head.substr(9, 3));
    for (size_t at = head.find("\r\n") + 2; at + 2 < head.size();) {
      const size_t end = head.find("\r\n", at);
      const size_t colon = head.find(": ", at);
      reply.headers[head.substr(at, colon - at)] = head.substr(colon + 2, end - colon - 2);
      at = end + 2;
    }
    return reply;
  }
  std::string read_chunk() {
    const std::string size = read_until("\r\n");
    if (size.empty()) return {};
    std::string chunk = read_bytes(std::stoul(size, nullptr, 16));
    read_bytes(2);
    return chunk;
  }
  Reply read_reply() {
    Reply reply = read_head();
    if (reply.status == 100) reply = read_head();
    if (reply.headers.count("content-length") > 0) {
      reply.body = read_bytes(std::stoul(reply.headers["content-length"]));
    } else if (reply.headers.count("transfer-encoding") > 0) {
      for (std::string chunk; !(chunk = read_chunk()).empty();) reply.body += chunk;
    } else {
      for (std::string more; !(more = receive()).empty();) rest_ += more;
      reply.body = std::exchange(rest_, {});
    }
    return reply;
  }

  Reply get(const std::string& path) {
    send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n");
    return read_reply();
  }
  void send_post(const std::string& path, const std::string& body, const std::string& more = "") {
    send("POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" +
         more + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body);
  }
  Reply post(const std::string& path, const std::string& body, const std::string& more = "") {
    send_post(path, body, more);
    return read_reply();
  }

 private:
  int fd_ = -1;
  bool connected_ = false;
  std::string rest_;
};

// The data of every event of a stream's text; comments are left out.
inline std::vector<std::string> events_of(const std::string& stream) {
  std::vector<std::string> events;
  for (size_t at = 0; at < stream.size();) {
    const size_t end = stream.find("\n\n", at);
    if (end == std::string::npos) break;
    const std::string event = stream.substr(at, end - at);
    if (event.starts_with("data: ")) events.push_back(event.substr(6));
    at = end + 2;
  }
  return events;
}

}  // namespace lorry
