#include "serve/http_wire.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "base/error.h"

namespace lorry {

namespace asio = boost::asio;
using asio::awaitable;
using boost::system::error_code;

namespace {

void check_file(const error_code& ec, const char* flag, const std::string& path) {
  if (ec) fail(Code::invalid_argument, "{} {}: {}", flag, quote(path), ec.message());
}

}  // namespace

std::shared_ptr<TlsContext> make_tls(const std::string& certfile, const std::string& keyfile) {
  auto context = std::make_shared<TlsContext>(TlsContext::tls_server);
  SSL_CTX* native = context->native_handle();
  LORRY_CHECK(SSL_CTX_set_min_proto_version(native, TLS1_2_VERSION) == 1);
  SSL_CTX_set_options(native, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  error_code ec;
  // A server has nobody to ask for a password.
  context->set_password_callback([](size_t, TlsContext::password_purpose) { return ""; }, ec);
  context->use_certificate_chain_file(certfile, ec);
  check_file(ec, "--ssl-certfile", certfile);
  context->use_private_key_file(keyfile, TlsContext::pem, ec);
  check_file(ec, "--ssl-keyfile", keyfile);
  if (SSL_CTX_check_private_key(native) != 1) {
    fail(Code::invalid_argument, "--ssl-keyfile {} is not the key of --ssl-certfile {}",
         quote(keyfile), quote(certfile));
  }
  return context;
}

struct Wire::Tls {
  Tls(Socket& socket, TlsContext& context) : stream(socket, context) {}
  asio::ssl::stream<Socket&> stream;
};

Wire::Wire(Socket socket, TlsContext* tls) : socket_(std::move(socket)) {
  if (tls != nullptr) tls_ = std::make_unique<Tls>(socket_, *tls);
}

Wire::~Wire() = default;

awaitable<bool> Wire::handshake() {
  if (!tls_) co_return true;
  error_code ec;
  co_await tls_->stream.async_handshake(asio::ssl::stream_base::server,
                                        asio::redirect_error(asio::use_awaitable, ec));
  co_return !ec;
}

// Asio tells an end once: who reads again waits for an event that has been.
size_t Wire::received(const error_code& ec, size_t n) {
  if (ec && ec != asio::error::operation_aborted) ended_ = true;
  return ec ? 0 : n;
}

awaitable<size_t> Wire::read(char* data, size_t size) {
  if (!tls_) co_return co_await read_raw(data, size);
  if (ended_) co_return 0;
  error_code ec;
  const size_t n = co_await tls_->stream.async_read_some(
      asio::buffer(data, size), asio::redirect_error(asio::use_awaitable, ec));
  co_return received(ec, n);
}

awaitable<size_t> Wire::read_raw(char* data, size_t size) {
  // The end of what TLS carries need not be that of the bytes below.
  if (ended_ && !tls_) co_return 0;
  error_code ec;
  const size_t n = co_await socket_.async_read_some(asio::buffer(data, size),
                                                    asio::redirect_error(asio::use_awaitable, ec));
  co_return received(ec, n);
}

size_t Wire::try_write(std::string_view bytes) {
  if (tls_) return 0;
  error_code ec;
  if (!socket_.non_blocking()) socket_.non_blocking(true, ec);
  const size_t n = socket_.send(asio::buffer(bytes.data(), bytes.size()), 0, ec);
  return ec ? 0 : n;
}

awaitable<bool> Wire::write(std::string_view bytes) {
  error_code ec;
  const auto buffer = asio::buffer(bytes.data(), bytes.size());
  if (tls_) {
    co_await asio::async_write(tls_->stream, buffer, asio::redirect_error(asio::use_awaitable, ec));
  } else {
    co_await asio::async_write(socket_, buffer, asio::redirect_error(asio::use_awaitable, ec));
  }
  co_return !ec;
}

awaitable<void> Wire::shutdown() {
  error_code ec;
  if (tls_) {
    co_await tls_->stream.async_shutdown(asio::redirect_error(asio::use_awaitable, ec));
  }
  socket_.shutdown(Socket::shutdown_send, ec);
}

void Wire::cancel() {
  error_code ignored;
  socket_.cancel(ignored);
}

}  // namespace lorry
