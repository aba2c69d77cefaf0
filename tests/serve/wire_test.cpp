// A connection as a stream of bytes.
#include <array>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <gtest/gtest.h>

#include "serve/http_wire.h"

namespace lorry {
namespace {

namespace asio = boost::asio;

// What watches a request's client may see the end before what waits for the next request does.
TEST(Wire, an_end_is_told_to_everyone_who_reads) {
  asio::io_context io(1);
  asio::local::stream_protocol::socket server(io), client(io);
  asio::local::connect_pair(server, client);
  Wire wire(Wire::Socket(std::move(server)), nullptr);
  int ends = 0;
  asio::co_spawn(
      io,
      [&]() -> asio::awaitable<void> {
        std::array<char, 8> buffer{};
        EXPECT_EQ(co_await wire.read(buffer.data(), buffer.size()), 2U);
        for (; ends < 3; ++ends) EXPECT_EQ(co_await wire.read(buffer.data(), buffer.size()), 0U);
      },
      asio::detached);
  io.poll();
  client.write_some(asio::buffer("ab", 2));
  io.poll();
  client.close();
  io.run_for(std::chrono::seconds(10));
  EXPECT_EQ(ends, 3);
}

}  // namespace
}  // namespace lorry
