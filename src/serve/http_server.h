// HttpServer: listens, and runs the connections on its own threads. Every request goes to the
// handler, on its connection's strand; the handler must not block.
// Members may be called from any thread that is not one of the server's.
#pragma once
#include <cstdint>
#include <memory>

#include "base/log.h"
#include "serve/http.h"

namespace lorry {

class HttpServer {
 public:
  // Binds and listens. Throws Error(invalid_argument) when the address cannot be used.
  HttpServer(HttpOptions options, HttpHandler handler, HttpRefusal refuse, Log& log);
  ~HttpServer();  // stop()
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  void start();
  uint16_t port() const;
  bool on_loopback() const;  // reachable from this machine only
  int64_t connections() const;
  int64_t busy() const;  // requests that are not answered in full
  // From now on connections close after the answer they are giving.
  void refuse_keep_alive();
  // Closes everything at once and joins the threads; the handler is not called afterwards.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorry
