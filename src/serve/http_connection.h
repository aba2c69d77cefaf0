// One client's connection: reads requests, hands them to the handler, writes the answers.
// Everything of a connection runs on one strand.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include <boost/asio/awaitable.hpp>

#include "base/log.h"
#include "serve/http.h"
#include "serve/http_wire.h"

namespace lorry {

// What the connections of a server share. Outlives them.
struct HttpShared {
  HttpOptions options;
  HttpHandler handler;
  HttpRefusal refuse;
  Log* log = nullptr;
  std::shared_ptr<TlsContext> tls;  // null: in the clear
  std::atomic<int64_t> connections{0};
  std::atomic<int64_t> busy{0};  // requests that are not answered in full
  std::atomic<bool> keep_alive{true};
};

// The socket's executor is the connection's strand.
boost::asio::awaitable<void> serve_connection(Wire::Socket socket, HttpShared& shared);

}  // namespace lorry
