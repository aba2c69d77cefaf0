// Bytes on a connection: the HTTP front as the server runs it (http_connection, http_head,
// http_parser, http_exchange), over a socket pair.
// Input: one byte, how large the pieces are that the bytes arrive in; then the bytes.
#include <array>
#include <cstring>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/local/connect_pair.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/strand.hpp>
#include <sys/socket.h>

#include "fuzz.h"
#include "serve/errors.h"
#include "serve/http_connection.h"

namespace {

namespace asio = boost::asio;
using namespace lorry;  // NOLINT

// Answers in each of the ways in which a handler can.
void answer(HttpRequest request, const std::shared_ptr<Responder>& responder) {
  HttpResponse response;
  response.content_type = "text/plain";
  if (request.path.starts_with("/stream")) {
    responder->prepare_stream(response);
    responder->write("first");
    responder->write(request.body.substr(0, 1000));
    responder->finish_stream();
    return;
  }
  if (request.path.starts_with("/later")) {
    responder->post([responder, response] { responder->respond(response); });
    return;
  }
  response.body = request.method + " " + request.path;
  response.close = request.path.starts_with("/close");
  responder->respond(response);
}

struct Front {
  Front() : log({LogLevel::off, false}) {
    shared.options.max_body_bytes = 4096;
    shared.handler = answer;
    shared.refuse = http_refusal;
    shared.log = &log;
  }
  Log log;
  HttpShared shared;
};

// All that a connection said is a sequence of answers.
void check_output(std::string_view output) {
  LORRY_CHECK(output.empty() || output.starts_with("HTTP/1.1 "), "no status line");
}

void run(Front& front, std::string_view input, size_t piece) {
  using Local = asio::local::stream_protocol;
  asio::io_context io(1);
  Local::socket server(asio::make_strand(io)), client(io);
  asio::local::connect_pair(server, client);
  client.non_blocking(true);
  bool ended = false;
  asio::co_spawn(io, serve_connection(Wire::Socket(std::move(server)), front.shared),
                 [&](const std::exception_ptr& error) {
                   LORRY_CHECK(!error, "a connection threw");
                   ended = true;
                 });
  std::string output;
  const auto drain = [&] {
    std::array<char, 16384> buffer{};
    boost::system::error_code ec;
    while (const size_t n = client.read_some(asio::buffer(buffer), ec)) {
      output.append(buffer.data(), n);
    }
  };
  while (!input.empty() && !ended) {
    boost::system::error_code ec;
    const size_t n =
        client.write_some(asio::buffer(input.data(), std::min(piece, input.size())), ec);
    input.remove_prefix(n);
    io.poll();
    drain();
    if (ec && ec != asio::error::would_block) break;
  }
  boost::system::error_code ec;
  client.shutdown(Local::socket::shutdown_send, ec);
  // The end of the input ends a connection; a timer that it would wait for is a finding.
  while (!ended) {
    const size_t ran = io.run_for(std::chrono::seconds(2));
    drain();
    LORRY_CHECK(ran > 0 || ended, "a connection does not end with its input");
  }
  check_output(output);
  LORRY_CHECK(front.shared.busy == 0, "a request is counted on");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Front front;
  if (size < 1) return 0;
  // 0 stands for all at once.
  const size_t piece = data[0] == 0 ? size : data[0];
  run(front, lorry::fuzz::text_of(data + 1, size - 1), piece);
  LORRY_CHECK(front.shared.connections == 0, "a connection is left");
  return 0;
}
