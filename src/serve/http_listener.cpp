#include "serve/http_listener.h"

#include <cstring>
#include <filesystem>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>

#include "base/error.h"

namespace lorry {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Unix = asio::local::stream_protocol;

namespace {

constexpr int kBacklog = 4096;

const char* advice(const error_code& ec) {
  if (ec == asio::error::address_in_use) {
    return "; another program listens there: choose another --port (0: one that is free)";
  }
  if (ec == asio::error::access_denied) {
    return "; this user may not use this port: choose a --port from 1024 on";
  }
  if (ec == boost::system::errc::address_not_available) {
    return "; --host must be an address of this machine, or 0.0.0.0 or :: for all";
  }
  return "";
}

// What a server that was killed has left behind goes; what is in use, or no socket, stays.
void make_room(asio::io_context& io, const std::string& path) {
  std::error_code absent;
  const auto status = std::filesystem::symlink_status(path, absent);
  if (!std::filesystem::exists(status)) return;
  if (status.type() != std::filesystem::file_type::socket) {
    fail(Code::invalid_argument, "cannot listen on --uds {}: it exists and is no socket",
         quote(path));
  }
  Unix::socket probe(io);
  error_code ec;
  probe.connect(Unix::endpoint(path), ec);
  if (!ec) {
    fail(Code::invalid_argument, "cannot listen on --uds {}: another server does", quote(path));
  }
  if (ec == asio::error::connection_refused) std::filesystem::remove(path, absent);
}

}  // namespace

HttpListener::HttpListener(asio::io_context& io, const HttpOptions& options) : acceptor_(io) {
  if (options.uds.empty()) {
    listen_on_tcp(io, options);
  } else {
    make_room(io, options.uds);
    listen_on_unix(options.uds);
  }
}

HttpListener::~HttpListener() { close(); }

void HttpListener::listen_on_tcp(asio::io_context& io, const HttpOptions& options) {
  error_code ec;
  tcp::resolver resolver(io);
  const auto found = resolver.resolve(options.host, std::to_string(options.port),
                                      tcp::resolver::passive | tcp::resolver::numeric_service, ec);
  if (ec || found.empty()) {
    fail(Code::invalid_argument, "cannot listen: {} is not an address of this machine ({})",
         quote(options.host), ec.message());
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor_.open(endpoint.protocol(), ec);
  if (!ec) acceptor_.set_option(Acceptor::reuse_address(true), ec);
  if (!ec) acceptor_.bind(endpoint, ec);
  if (!ec) acceptor_.listen(kBacklog, ec);
  if (ec) {
    fail(Code::invalid_argument, "cannot listen on {} port {}: {}{}", quote(options.host),
         options.port, ec.message(), advice(ec));
  }
  const auto generic = acceptor_.local_endpoint();
  tcp::endpoint bound;
  std::memcpy(bound.data(), generic.data(), generic.size());
  bound.resize(generic.size());
  port_ = bound.port();
  on_loopback_ = bound.address().is_loopback();
}

void HttpListener::listen_on_unix(const std::string& path) {
  constexpr size_t kMost = 107;  // of sockaddr_un
  error_code ec;
  if (path.size() > kMost) ec = asio::error::name_too_long;
  if (!ec) acceptor_.open(Unix(), ec);
  if (!ec) acceptor_.bind(Unix::endpoint(path), ec);
  if (!ec) uds_ = path;
  if (!ec) {
    // For the owner and the group, whatever the process's mask admits.
    using std::filesystem::perms;
    std::error_code failed;
    std::filesystem::permissions(
        path, perms::owner_read | perms::owner_write | perms::group_read | perms::group_write,
        failed);
    if (failed) ec = error_code(failed.value(), boost::system::system_category());
  }
  if (!ec) acceptor_.listen(kBacklog, ec);
  if (ec) {
    fail(Code::invalid_argument, "cannot listen on --uds {}: {}", quote(path), ec.message());
  }
}

void HttpListener::close() {
  error_code ignored;
  acceptor_.close(ignored);
  std::error_code also_ignored;
  if (!uds_.empty()) std::filesystem::remove(uds_, also_ignored);
  uds_.clear();
}

}  // namespace lorry
