#include "serve/http_connection.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include <boost/asio/buffer.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <fmt/format.h>

#include "serve/http_exchange.h"
#include "serve/http_head.h"
#include "serve/http_parser.h"

namespace lorry {

namespace asio = boost::asio;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

namespace {

constexpr size_t kReadBytes = 16384;
// Bytes on the wire for each byte of a chunked body, above which its framing is an attack.
constexpr size_t kChunkOverhead = 8;

Clock::duration seconds(double s) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(s));
}

// What reading a request came to.
struct Incoming {
  enum class Kind { request, refused, gone };
  Kind kind = Kind::gone;
  HeadProblem problem;  // refused
  HttpRequest request;  // refused: perhaps only its path
  bool keep_alive = false;
  bool http11 = true;
  bool head = false;  // the method is HEAD: no body in the answer
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, HttpShared& shared)
      : socket_(std::move(socket)), deadline_(socket_.get_executor()), shared_(shared) {
    shared_.connections.fetch_add(1);
  }
  ~Connection() { shared_.connections.fetch_sub(1); }

  awaitable<void> run();

 private:
  awaitable<Incoming> read_request();
  awaitable<bool> read_head(Incoming& in);
  awaitable<bool> read_body(Incoming& in, RequestParser& parser);
  awaitable<void> expect_continue(const RequestParser& parser);
  awaitable<bool> answer(Incoming& in);
  awaitable<bool> send_response(HttpResponse response, const Incoming& in);
  awaitable<bool> send_stream(const Incoming& in, std::shared_ptr<Exchange> exchange);
  awaitable<void> wait_for_change(Exchange& exchange, Clock::time_point until);
  awaitable<void> linger();

  awaitable<bool> read_more(Clock::time_point deadline);
  awaitable<bool> send(std::string_view bytes);
  void arm(Clock::time_point when);
  void disarm();
  void watch(const std::shared_ptr<Exchange>& exchange);

  tcp::socket socket_;
  asio::steady_timer deadline_;
  uint64_t armed_ = 0;  // number of the operation that the timer may cancel
  bool timed_out_ = false;
  HttpShared& shared_;
  std::string input_;  // received and not yet consumed
};

void Connection::arm(Clock::time_point when) {
  timed_out_ = false;
  const uint64_t number = ++armed_;
  deadline_.expires_at(when);
  deadline_.async_wait([self = shared_from_this(), number](const error_code& ec) {
    if (ec || number != self->armed_) return;
    self->timed_out_ = true;
    error_code ignored;
    self->socket_.cancel(ignored);
  });
}

void Connection::disarm() {
  ++armed_;
  deadline_.cancel();
}

// False at the end of the input, after an error or when the deadline passed (timed_out_).
awaitable<bool> Connection::read_more(Clock::time_point deadline) {
  const size_t old = input_.size();
  input_.resize(old + kReadBytes);
  error_code ec;
  arm(deadline);
  const size_t n = co_await socket_.async_read_some(asio::buffer(input_.data() + old, kReadBytes),
                                                    asio::redirect_error(asio::use_awaitable, ec));
  disarm();
  input_.resize(old + n);
  co_return !ec;
}

awaitable<bool> Connection::send(std::string_view bytes) {
  error_code ec;
  arm(Clock::now() + seconds(shared_.options.send_seconds));
  co_await asio::async_write(socket_, asio::buffer(bytes.data(), bytes.size()),
                             asio::redirect_error(asio::use_awaitable, ec));
  disarm();
  co_return !ec;
}

// The path in what has arrived of a request line, for a refusal's words.
std::string path_of(std::string_view head) {
  const size_t first = head.find(' ');
  if (first == std::string_view::npos) return {};
  const std::string_view rest = head.substr(first + 1);
  return std::string(rest.substr(0, std::min(rest.find_first_of(" ?\r\n"), size_t{256})));
}

// Waits for the whole head to be in input_. False: in.kind says why.
awaitable<bool> Connection::read_head(Incoming& in) {
  const HttpOptions& options = shared_.options;
  Clock::time_point deadline =
      Clock::now() + seconds(input_.empty() ? options.idle_seconds : options.head_seconds);
  for (;;) {
    // An empty line before a request is to be skipped (RFC 9112, 2.2).
    while (input_.starts_with("\r\n")) input_.erase(0, 2);
    const size_t end = input_.find("\r\n\r\n");
    const size_t size = end == std::string::npos ? input_.size() : end + 4;
    const size_t line_end = input_.find('\n');
    in.kind = Incoming::Kind::refused;
    if (line_end == std::string::npos && size > options.max_target_bytes + 64) {
      in.problem = {414, "the URI is too long"};
    } else if (size > options.max_head_bytes) {
      in.problem = {431, "the header is too large"};
    } else if (line_end != std::string::npos && (line_end == 0 || input_[line_end - 1] != '\r')) {
      in.problem = {400, "a header line does not end with CR LF"};
    } else if (end != std::string::npos) {
      in.problem = check_head(std::string_view(input_).substr(0, size), options);
      if (in.problem.status == 0) co_return true;
    }
    if (in.problem.status != 0) break;

    const bool was_idle = input_.empty();
    if (!co_await read_more(deadline)) {
      in.kind = timed_out_ && !was_idle ? Incoming::Kind::refused : Incoming::Kind::gone;
      in.problem = {408, "the header did not arrive in time"};
      break;
    }
    if (was_idle) deadline = Clock::now() + seconds(options.head_seconds);
  }
  in.request.path = path_of(input_);
  co_return false;
}

awaitable<void> Connection::expect_continue(const RequestParser& parser) {
  if (parser.expects_continue() && input_.empty()) {
    co_await send("HTTP/1.1 100 Continue\r\n\r\n");
  }
}

// Feeds the parser until the body is whole.
awaitable<bool> Connection::read_body(Incoming& in, RequestParser& parser) {
  const HttpOptions& options = shared_.options;
  const Clock::time_point start = Clock::now();
  const size_t most = options.max_body_bytes * kChunkOverhead + 65536;
  size_t received = input_.size();
  for (;;) {
    size_t used = 0;
    in.problem = parser.take_body(input_, &used);
    if (in.problem.status != 0) co_return false;
    input_.erase(0, used);
    if (parser.done()) co_return true;
    // What the parser cannot take is one line of a chunk's framing.
    if (input_.size() > options.max_head_bytes || received > most) {
      in.problem = {413, "the chunks' framing is too large"};
      co_return false;
    }
    const double extra = static_cast<double>(received) / options.body_bytes_per_second;
    const size_t before = input_.size();
    if (!co_await read_more(start + seconds(options.body_grace_seconds + extra))) {
      in.kind = timed_out_ ? Incoming::Kind::refused : Incoming::Kind::gone;
      in.problem = {408, "the body did not arrive in time"};
      co_return false;
    }
    received += input_.size() - before;
  }
}

awaitable<Incoming> Connection::read_request() {
  Incoming in;
  if (!co_await read_head(in)) co_return in;
  in.request.received = Clock::now();
  in.request.path = path_of(input_);
  in.kind = Incoming::Kind::refused;

  RequestParser parser(shared_.options);
  size_t used = 0;
  in.problem = parser.take_head(input_, &used);
  if (in.problem.status != 0) co_return in;
  input_.erase(0, used);
  co_await expect_continue(parser);
  if (!co_await read_body(in, parser)) co_return in;
  in.keep_alive = parser.keep_alive() && shared_.keep_alive.load();
  in.http11 = parser.http11();
  in.head = parser.is_head();
  parser.move_to(in.request);
  in.kind = Incoming::Kind::request;
  co_return in;
}

awaitable<bool> Connection::send_response(HttpResponse response, const Incoming& in) {
  const bool keep = in.keep_alive && !response.close && shared_.keep_alive.load();
  std::string bytes = write_head(response, Framing::length, keep);
  if (!in.head) bytes += response.body;
  const bool sent = co_await send(bytes);
  co_return sent&& keep;
}

awaitable<void> Connection::wait_for_change(Exchange& exchange, Clock::time_point until) {
  error_code ec;
  exchange.wake().expires_at(until);
  co_await exchange.wake().async_wait(asio::redirect_error(asio::use_awaitable, ec));
}

// Closes the exchange when the client goes away. A client that sends on (a next request before this
// answer) is not watched any further.
void Connection::watch(const std::shared_ptr<Exchange>& exchange) {
  socket_.async_wait(
      tcp::socket::wait_read, [self = shared_from_this(), exchange](const error_code& ec) {
        if (ec || exchange->complete()) return;
        char byte = 0;
        error_code peeked;
        self->socket_.receive(asio::buffer(&byte, 1), tcp::socket::message_peek, peeked);
        if (peeked == asio::error::would_block) {
          self->watch(exchange);
        } else if (peeked) {
          exchange->close();
        }
      });
}

// False when the connection is to be closed.
awaitable<bool> Connection::answer(Incoming& in) {
  auto exchange =
      std::make_shared<Exchange>(socket_.get_executor(), shared_.options.send_buffer_bytes);
  shared_.handler(std::move(in.request), exchange);
  watch(exchange);
  while (!exchange->closed() && !exchange->response() && !exchange->streaming()) {
    co_await wait_for_change(*exchange, Clock::time_point::max());
  }
  bool keep = false;
  if (exchange->streaming()) {
    keep = co_await send_stream(in, exchange);
  } else if (exchange->response()) {
    keep = co_await send_response(std::move(*exchange->response()), in);
  }
  exchange->close();
  error_code ignored;
  socket_.cancel(ignored);  // ends the watch
  co_return keep;
}

awaitable<bool> Connection::send_stream(const Incoming& in, std::shared_ptr<Exchange> exchange) {
  const bool keep = in.keep_alive && in.http11;
  bool head_sent = false;
  for (;;) {
    const Clock::time_point ping = Clock::now() + seconds(shared_.options.ping_seconds);
    while (!exchange->closed() && !exchange->complete() && !exchange->has_output() &&
           Clock::now() < ping) {
      co_await wait_for_change(*exchange, ping);
    }
    if (exchange->closed()) co_return false;
    // The handler changed its mind before anything was sent: an error with a status of its own.
    if (exchange->response()) {
      co_return co_await send_response(std::move(*exchange->response()), in);
    }
    const bool last = exchange->complete();
    std::string chunk = exchange->take_output();
    if (chunk.empty() && !last) chunk = ":\n\n";
    exchange->begin();

    std::string bytes;
    if (!head_sent) {
      bytes =
          write_head(exchange->head(), in.http11 ? Framing::chunked : Framing::until_close, keep);
    }
    head_sent = true;
    if (in.http11 && !chunk.empty()) bytes += fmt::format("{:x}\r\n{}\r\n", chunk.size(), chunk);
    if (!in.http11) bytes += chunk;
    if (in.http11 && last) bytes += "0\r\n\r\n";
    if (!co_await send(bytes)) co_return false;
    if (last) co_return keep&& shared_.keep_alive.load();
  }
}

// Lets the client read the last answer although it may still be sending: closing with unread
// input would reset the connection and with it the answer.
awaitable<void> Connection::linger() {
  error_code ec;
  socket_.shutdown(tcp::socket::shutdown_send, ec);
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(5);
  size_t left = size_t{64} << 20;
  while (!ec && left > 0) {
    input_.clear();
    if (!co_await read_more(deadline)) break;
    left -= std::min(left, input_.size());
  }
}

awaitable<void> Connection::run() {
  for (;;) {
    Incoming in = co_await read_request();
    if (in.kind == Incoming::Kind::gone) co_return;
    if (in.kind == Incoming::Kind::refused) {
      const HeadProblem& problem = in.problem;
      HttpResponse refusal = shared_.refuse(problem.status, problem.message, in.request.path);
      refusal.close = true;
      co_await send_response(std::move(refusal), in);
      break;
    }
    shared_.busy.fetch_add(1);
    const bool keep = co_await answer(in);
    shared_.busy.fetch_sub(1);
    if (!keep) break;
  }
  co_await linger();
}

}  // namespace

awaitable<void> serve_connection(tcp::socket socket, HttpShared& shared) {
  auto connection = std::make_shared<Connection>(std::move(socket), shared);
  co_await connection->run();
}

}  // namespace lorry
