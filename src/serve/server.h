// Server: Lorry's HTTP server over one engine. start() returns at once; the server runs on its own
// threads until shutdown().
#pragma once
#include <cstdint>
#include <memory>

#include "base/log.h"
#include "serve/backend.h"
#include "serve/options.h"

namespace lorry {

class Server {
 public:
  // Binds and listens. The log must outlive it. Throws Error(invalid_argument) when the address
  // cannot be used or keys, certificates and the like make no sense.
  Server(ServerOptions options, Log& log);
  ~Server();  // shutdown(0)
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Until serve() every answer is that the model is being loaded.
  void start();
  // From now on requests go to the backend, which must outlive shutdown(). Throws Error(bad_file)
  // when the model's chat template does not compile. Once.
  void serve(Backend& backend);
  uint16_t port() const;
  bool on_loopback() const;

  // /health says 503 at once and new work is refused; what runs may finish within `seconds`, is
  // then aborted, and the server stops. Returns when it has. A second call, from another thread,
  // can only shorten the time.
  void shutdown(double seconds);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorry
