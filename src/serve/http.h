// The plain HTTP interface between the server's sockets (http_server, http_connection) and what
// answers. No Beast here: every user of that costs twenty seconds to compile.
// A request is answered through its Responder, whose methods run on the connection's strand, except
// post(), which any thread may call.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lorry {

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method;
  std::string path;     // as sent: not percent-decoded, without the query
  HttpHeaders headers;  // names in lower case
  std::string body;
  std::chrono::steady_clock::time_point received{};

  // Empty when absent; `name` in lower case.
  std::string_view header(std::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return value;
    }
    return {};
  }
};

struct HttpResponse {
  int status = 200;
  std::string content_type;  // empty: no such header
  std::string body;
  HttpHeaders headers;  // values without control bytes
  bool close = false;   // close the connection afterwards
};

class Responder {
 public:
  virtual ~Responder() = default;

  // Runs `work` on the connection's strand, even when the client is gone. Any thread.
  virtual void post(std::function<void()> work) = 0;

  // The whole answer. Not after the stream has begun.
  virtual void respond(HttpResponse response) = 0;

  // Says that the answer will be a stream of chunks with this head. Nothing is sent before the
  // first write() or, for a client not to lose patience, the first ping.
  virtual void prepare_stream(HttpResponse head) = 0;
  // True once bytes of the stream were sent, or will be: respond() is no longer possible.
  virtual bool begun() const = 0;
  // False when the client is gone, or so slow that the buffer is full: it is then cut off.
  virtual bool write(std::string_view chunk) = 0;
  virtual void finish_stream() = 0;

  // Runs `work` on the connection's strand at that time, unless the answer is complete or the
  // client gone by then. Once; a second call takes the place of the first.
  virtual void at(std::chrono::steady_clock::time_point time, std::function<void()> work) = 0;

  // True when no answer can reach the client any more.
  virtual bool closed() const = 0;
  // Called once, when that happens before the answer is complete.
  virtual void on_close(std::function<void()> callback) = 0;
};

using HttpHandler = std::function<void(HttpRequest, std::shared_ptr<Responder>)>;

// The answer to a request that the HTTP layer itself refuses, in the words that clients of `path`
// understand. `path` may be empty.
using HttpRefusal =
    std::function<HttpResponse(int status, std::string_view message, std::string_view path)>;

struct HttpOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 3000;                   // 0: the system chooses
  std::string uds;                        // path of a Unix socket to listen on instead; empty: none
  std::string ssl_certfile, ssl_keyfile;  // PEM; both or none
  int io_threads = 2;
  size_t max_connections = 16384;
  size_t max_head_bytes = 16384;
  size_t max_fields = 100;
  size_t max_target_bytes = 8192;
  size_t max_body_bytes = 2'000'000;
  size_t send_buffer_bytes = 256 * 1024;  // of a stream, beyond what the system buffers
  double idle_seconds = 75;               // between two requests of a connection
  double head_seconds = 10;               // from a request's first byte to the end of its head
  double body_grace_seconds = 10;         // and then for the body, plus ...
  double body_bytes_per_second = 4096;    // ... the time that its bytes take at this rate
  double send_seconds = 60;               // for the client to take what was sent
  double ping_seconds = 15;               // of silence on a stream
};

}  // namespace lorry
