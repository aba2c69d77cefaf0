// FakeServer: an HTTP server on 127.0.0.1 for tests, which can also answer wrongly, slowly, or not
// to the end. One thread a connection; the handler is called by all of them.
#pragma once
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace lorry {

struct ServerRequest {
  std::string method;
  std::string path;                            // as sent
  std::string query;                           // without the ?
  std::map<std::string, std::string> headers;  // names in lower case

  std::string header(const std::string& name) const;
};

struct ServerReply {
  enum class Ending { keep_alive, close, reset, hang };

  int status = 200;
  std::map<std::string, std::string> headers = {};
  std::string body = {};
  int64_t declared = -1;    // Content-Length; -1: the body's size, -2: none is sent
  int64_t send_bytes = -1;  // of the body, then the ending; -1: all
  Ending ending = Ending::keep_alive;
  std::chrono::milliseconds delay{0};        // before the answer
  std::chrono::milliseconds piece_delay{0};  // after each 1000 bytes of the body
};

// A socket that listens on 127.0.0.1, on a free port.
struct LocalListener {
  LocalListener();
  int fd = -1;
  int port = 0;
};

class FakeServer {
 public:
  using Handler = std::function<ServerReply(const ServerRequest&)>;

  FakeServer();  // listens; connections wait until start()
  ~FakeServer();
  FakeServer(const FakeServer&) = delete;
  FakeServer& operator=(const FakeServer&) = delete;

  void start(Handler handler);
  // No more answers; open connections are closed.
  void stop();

  std::string origin() const;  // "http://127.0.0.1:PORT"
  std::vector<ServerRequest> requests() const;
  // Requests with this method whose path contains `part`.
  size_t count(const std::string& method, const std::string& part) const;
  void forget_requests();
  // Waits, up to 10 s, until count() is at least n.
  bool wait_for(size_t n, const std::string& method, const std::string& part);

 private:
  void accept_forever();
  void serve(int fd);
  bool answer(int fd, const ServerRequest& request);

  LocalListener listener_;
  Handler handler_;
  std::thread acceptor_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopped_ = false;
  std::set<int> open_;
  std::vector<std::thread> connections_;
  std::vector<ServerRequest> requests_;
};

}  // namespace lorry
