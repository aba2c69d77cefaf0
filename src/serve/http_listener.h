// Where a server listens: an address of TCP, or a Unix socket.
#pragma once
#include <cstdint>
#include <string>

#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>

#include "serve/http.h"

namespace lorry {

class HttpListener {
 public:
  using Acceptor = boost::asio::basic_socket_acceptor<boost::asio::generic::stream_protocol>;

  // Binds and listens. A Unix socket that nobody answers on any more is replaced. Throws
  // Error(invalid_argument) when the address cannot be used.
  HttpListener(boost::asio::io_context& io, const HttpOptions& options);
  ~HttpListener();  // close()
  HttpListener(const HttpListener&) = delete;
  HttpListener& operator=(const HttpListener&) = delete;

  Acceptor& acceptor() { return acceptor_; }
  uint16_t port() const { return port_; }            // 0: a Unix socket
  bool on_loopback() const { return on_loopback_; }  // reachable from this machine only
  void close();

 private:
  void listen_on_tcp(boost::asio::io_context& io, const HttpOptions& options);
  void listen_on_unix(const std::string& path);

  Acceptor acceptor_;
  std::string uds_;  // to be removed
  uint16_t port_ = 0;
  bool on_loopback_ = true;
};

}  // namespace lorry
