#include "serve/server.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "serve/door.h"
#include "serve/errors.h"
#include "serve/http_server.h"
#include "serve/service.h"
#include "serve/web_page.h"

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
  Impl(ServerOptions given, Log& to)
      : options(std::move(given)),
        log(to),
        door(options),
        http(
            options.http,
            [this](HttpRequest request, std::shared_ptr<Responder> responder) {
              handle(std::move(request), std::move(responder));
            },
            refusal_with_id, log) {}

  void handle(HttpRequest request, std::shared_ptr<Responder> responder);
  Clock::time_point current_deadline() {
    std::lock_guard lock(mutex);
    return deadline;
  }
  void wait_until_idle(Clock::duration extra);

  const ServerOptions options;
  Log& log;
  Door door;
  std::unique_ptr<Service> service;      // written once, by serve()
  std::atomic<Service*> ready{nullptr};  // the same, for the connections
  HttpServer http;
  std::mutex mutex;  // of the next
  Clock::time_point deadline = Clock::time_point::max();
  std::mutex stopping;  // held while the server stops
  bool stopped = false;
};

// On a connection's strand.
void Server::Impl::handle(HttpRequest request, std::shared_ptr<Responder> responder) {
  if (Service* to = ready.load()) {
    to->handle(std::move(request), std::move(responder));
    return;
  }
  if (options.web && is_web_request(request)) {  // it says itself that the model is being loaded
    const Door::Visit visit = door.visit(request);
    HttpResponse page = visit.refusal ? error_response(*visit.refusal, dialect_of(request.path))
                                      : *web_answer(request);
    page.headers.emplace_back("x-request-id", random_id());
    responder->respond(std::move(page));
    return;
  }
  const bool probe =
      request.path == "/health" || request.path == "/ping" || request.path == "/startup";
  HttpResponse response = error_response(
      {probe ? Problem::unhealthy : Problem::unavailable, "the model is being loaded", {}},
      dialect_of(request.path));
  response.headers.emplace_back("x-request-id", random_id());
  responder->respond(std::move(response));
}

// Until nothing is being answered, or `extra` after the deadline.
void Server::Impl::wait_until_idle(Clock::duration extra) {
  while (http.busy() > 0 && Clock::now() < current_deadline() + extra) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

Server::Server(ServerOptions options, Log& log)
    : impl_(std::make_unique<Impl>(std::move(options), log)) {
  // No page in a browser reaches a Unix socket: whoever passes requests on to it may name any host.
  if (impl_->http.on_loopback() && impl_->http.port() != 0) impl_->door.require_loopback_host();
}

Server::~Server() { shutdown(0); }

void Server::start() { impl_->http.start(); }

void Server::serve(Backend& backend) {
  LORRY_CHECK(impl_->service == nullptr, "a second backend");
  impl_->service = std::make_unique<Service>(impl_->options, impl_->door, backend, impl_->log);
  impl_->ready.store(impl_->service.get());
}

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
  if (Service* service = impl_->ready.load()) service->drain();
  impl_->http.refuse_keep_alive();
  impl_->wait_until_idle({});

  std::lock_guard lock(impl_->stopping);
  if (impl_->stopped) return;
  impl_->stopped = true;
  Service* service = impl_->ready.load();
  if (service != nullptr) service->abort_generations();
  impl_->wait_until_idle(kLastWords);
  impl_->http.stop();
  if (service != nullptr) service->stop();
}

}  // namespace lorry
