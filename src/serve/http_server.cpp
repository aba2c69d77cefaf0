#include "serve/http_server.h"

#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/error.h"
#include "serve/http_connection.h"
#include "serve/http_head.h"
#include "serve/http_listener.h"

namespace lorry {

namespace asio = boost::asio;
using asio::awaitable;
using boost::system::error_code;

struct HttpServer::Impl {
  Impl(HttpOptions options, HttpHandler handler, HttpRefusal refuse)
      : io(options.io_threads), listener(io, options) {
    if (!options.ssl_certfile.empty()) {
      shared.tls = make_tls(options.ssl_certfile, options.ssl_keyfile);
    }
    shared.options = std::move(options);
    shared.handler = std::move(handler);
    shared.refuse = std::move(refuse);
  }

  awaitable<void> accept_all();
  void accepted(Wire::Socket socket);

  // Declared first: destroyed last, after the connections that its destruction destroys.
  HttpShared shared;
  asio::io_context io;
  HttpListener listener;
  std::vector<std::thread> threads;
};

void HttpServer::Impl::accepted(Wire::Socket socket) {
  error_code ec;
  // Many small writes: with Nagle's algorithm each would wait for the client's acknowledgement.
  if (shared.options.uds.empty()) socket.set_option(asio::ip::tcp::no_delay(true), ec);
  if (shared.connections.load() >= static_cast<int64_t>(shared.options.max_connections)) {
    // In TLS it could only be said after a handshake.
    if (shared.tls) return;
    socket.non_blocking(true, ec);
    HttpResponse refusal = shared.refuse(503, "too many connections", {});
    const std::string bytes = write_head(refusal, Framing::length, false) + refusal.body;
    socket.send(asio::buffer(bytes), 0, ec);
    return;
  }
  const auto strand = socket.get_executor();
  asio::co_spawn(strand, serve_connection(std::move(socket), shared),
                 [log = shared.log](const std::exception_ptr& error) {
                   if (!error) return;
                   try {
                     std::rethrow_exception(error);
                   } catch (const std::exception& e) {
                     log->error("a connection failed: {}", e.what());
                   }
                 });
}

awaitable<void> HttpServer::Impl::accept_all() {
  bool failing = false;
  asio::steady_timer pause(io);
  for (;;) {
    error_code ec;
    Wire::Socket socket = co_await listener.acceptor().async_accept(
        asio::make_strand(io), asio::redirect_error(asio::use_awaitable, ec));
    if (!listener.acceptor().is_open()) co_return;
    if (!ec) {
      failing = false;
      accepted(std::move(socket));
      continue;
    }
    // Out of file descriptors, mostly: trying again at once would spin.
    if (!failing) shared.log->error("cannot accept connections: {}", ec.message());
    failing = true;
    pause.expires_after(std::chrono::milliseconds(100));
    co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  }
}

HttpServer::HttpServer(HttpOptions options, HttpHandler handler, HttpRefusal refuse, Log& log)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(handler), std::move(refuse))) {
  impl_->shared.log = &log;
}

HttpServer::~HttpServer() { stop(); }

void HttpServer::start() {
  asio::co_spawn(impl_->io, impl_->accept_all(), asio::detached);
  for (int i = 0; i < impl_->shared.options.io_threads; ++i) {
    impl_->threads.emplace_back([this] { impl_->io.run(); });
  }
}

uint16_t HttpServer::port() const { return impl_->listener.port(); }
bool HttpServer::on_loopback() const { return impl_->listener.on_loopback(); }

int64_t HttpServer::connections() const { return impl_->shared.connections.load(); }

int64_t HttpServer::busy() const { return impl_->shared.busy.load(); }

void HttpServer::refuse_keep_alive() { impl_->shared.keep_alive.store(false); }

void HttpServer::stop() {
  impl_->io.stop();
  for (std::thread& thread : impl_->threads) thread.join();
  impl_->threads.clear();
  // New connections are refused rather than kept waiting.
  impl_->listener.close();
}

}  // namespace lorry
