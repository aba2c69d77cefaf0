#include "serve/http_server.h"

#include <thread>
#include <utility>
#include <vector>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "base/error.h"
#include "serve/http_connection.h"
#include "serve/http_head.h"

namespace lorry {

namespace asio = boost::asio;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;

struct HttpServer::Impl {
  Impl(HttpOptions options, HttpHandler handler, HttpRefusal refuse)
      : io(options.io_threads), acceptor(io) {
    shared.options = std::move(options);
    shared.handler = std::move(handler);
    shared.refuse = std::move(refuse);
  }

  void listen();
  awaitable<void> accept_all();
  void accepted(tcp::socket socket);

  // Declared first: destroyed last, after the connections that its destruction destroys.
  HttpShared shared;
  asio::io_context io;
  tcp::acceptor acceptor;
  tcp::endpoint bound;
  std::vector<std::thread> threads;
};

void HttpServer::Impl::listen() {
  const HttpOptions& options = shared.options;
  error_code ec;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(options.host, std::to_string(options.port),
                                      tcp::resolver::passive | tcp::resolver::numeric_service, ec);
  if (ec || found.empty()) {
    fail(Code::invalid_argument, "cannot listen: {} is not an address of this machine ({})",
         quote(options.host), ec.message());
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor.open(endpoint.protocol(), ec);
  if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
  if (!ec) acceptor.bind(endpoint, ec);
  if (!ec) acceptor.listen(4096, ec);
  if (ec) {
    fail(Code::invalid_argument, "cannot listen on {} port {}: {}", quote(options.host),
         options.port, ec.message());
  }
  bound = acceptor.local_endpoint();
}

void HttpServer::Impl::accepted(tcp::socket socket) {
  error_code ec;
  // Many small writes: with Nagle's algorithm each would wait for the client's acknowledgement.
  socket.set_option(tcp::no_delay(true), ec);
  // Connections' peeks (is the client still there?) must not block.
  socket.non_blocking(true, ec);
  if (shared.connections.load() >= static_cast<int64_t>(shared.options.max_connections)) {
    HttpResponse refusal = shared.refuse(503, "too many connections", {});
    socket.write_some(asio::buffer(write_head(refusal, Framing::length, false) + refusal.body), ec);
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
    tcp::socket socket = co_await acceptor.async_accept(
        asio::make_strand(io), asio::redirect_error(asio::use_awaitable, ec));
    if (!acceptor.is_open()) co_return;
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
  impl_->listen();
}

HttpServer::~HttpServer() { stop(); }

void HttpServer::start() {
  asio::co_spawn(impl_->io, impl_->accept_all(), asio::detached);
  for (int i = 0; i < impl_->shared.options.io_threads; ++i) {
    impl_->threads.emplace_back([this] { impl_->io.run(); });
  }
}

uint16_t HttpServer::port() const { return impl_->bound.port(); }
bool HttpServer::on_loopback() const { return impl_->bound.address().is_loopback(); }

int64_t HttpServer::connections() const { return impl_->shared.connections.load(); }

int64_t HttpServer::busy() const { return impl_->shared.busy.load(); }

void HttpServer::refuse_keep_alive() { impl_->shared.keep_alive.store(false); }

void HttpServer::stop() {
  impl_->io.stop();
  for (std::thread& thread : impl_->threads) thread.join();
  impl_->threads.clear();
  // New connections are refused rather than kept waiting.
  error_code ignored;
  impl_->acceptor.close(ignored);
}

}  // namespace lorry
