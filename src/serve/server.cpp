#include "serve/server.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <thread>

#include "serve/errors.h"
#include "serve/http_server.h"
#include "serve/service.h"

namespace lorry {

namespace {

using Clock = std::chrono::steady_clock;

HttpResponse refusal_with_id(int status, std::string_view message, std::string_view path) {
  HttpResponse response = http_refusal(status, message, path);
  response.headers.emplace_back("x-request-id", random_id());
  return response;
}

}  // namespace

struct Server::Impl {
  Impl(ServerOptions options, Backend& backend, Log& log)
      : service(options, backend, log),
        http(
            options.http,
            [this](HttpRequest request, std::shared_ptr<Responder> responder) {
              service.handle(std::move(request), std::move(responder));
            },
            refusal_with_id, log) {}

  Clock::time_point current_deadline() {
    std::lock_guard lock(mutex);
    return deadline;
  }
  void wait_until_idle(Clock::duration extra);

  Service service;
  HttpServer http;
  std::mutex mutex;  // of the next
  Clock::time_point deadline = Clock::time_point::max();
  std::mutex stopping;  // held while the server stops
  bool stopped = false;
};

// Until nothing is being answered, or `extra` after the deadline.
void Server::Impl::wait_until_idle(Clock::duration extra) {
  while (http.busy() > 0 && Clock::now() < current_deadline() + extra) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Server::Server(ServerOptions options, Backend& backend, Log& log)
    : impl_(std::make_unique<Impl>(std::move(options), backend, log)) {
  if (impl_->http.on_loopback()) impl_->service.require_loopback_host();
}

Server::~Server() { shutdown(0); }

void Server::start() { impl_->http.start(); }
uint16_t Server::port() const { return impl_->http.port(); }
bool Server::on_loopback() const { return impl_->http.on_loopback(); }

void Server::shutdown(double seconds) {
  // What an aborted request's last words may take to reach its client.
  constexpr auto kLastWords = std::chrono::seconds(2);
  {
    std::lock_guard lock(impl_->mutex);
    const auto limit = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                          std::chrono::duration<double>(std::min(seconds, 1e6)));
    impl_->deadline = std::min(impl_->deadline, limit);
  }
  impl_->service.drain();
  impl_->http.refuse_keep_alive();
  impl_->wait_until_idle({});

  std::lock_guard lock(impl_->stopping);
  if (impl_->stopped) return;
  impl_->stopped = true;
  impl_->service.abort_generations();
  impl_->wait_until_idle(kLastWords);
  impl_->http.stop();
  impl_->service.stop();
}

}  // namespace lorry
