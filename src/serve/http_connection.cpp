#include "serve/http_connection.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/format.h>

#include "serve/http_exchange.h"
#include "serve/http_head.h"
#include "serve/http_parser.h"

namespace lorry {

namespace asio = boost::asio;
using asio::awaitable;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

namespace {

constexpr size_t kReadBytes = 16384;
constexpr size_t kWatchBytes = 1024;  // streams are many, and what they send ahead is little
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
  Connection(Wire::Socket socket, HttpShared& shared)
      : wire_(std::move(socket), shared.tls.get()),
        deadline_(wire_.executor()),
        watched_(wire_.executor()),
        shared_(shared) {
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
  awaitable<void> watch(std::shared_ptr<Exchange> exchange);
  awaitable<void> end_watch();

  Wire wire_;
  asio::steady_timer deadline_;
  uint64_t armed_ = 0;  // number of the operation that the timer may cancel
  bool timed_out_ = false;
  asio::steady_timer watched_;  // its handlers run when the watch ends
  bool watching_ = false;
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
    self->wire_.cancel();
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
  arm(deadline);
  const size_t n = co_await wire_.read(input_.data() + old, kReadBytes);
  disarm();
  input_.resize(old + n);
  co_return n > 0;
}

awaitable<bool> Connection::send(std::string_view bytes) {
  bytes.remove_prefix(wire_.try_write(bytes));
  if (bytes.empty()) co_return true;
  arm(Clock::now() + seconds(shared_.options.send_seconds));
  const bool sent = co_await wire_.write(bytes);
  disarm();
  co_return sent;
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

// Reads on while a request is answered: closes the exchange when the client goes away, and keeps
// what it sends ahead. One that has sent much is not watched any further.
awaitable<void> Connection::watch(std::shared_ptr<Exchange> exchange) {
  bool open = true;
  while (open && !exchange->complete() && !exchange->closed() && input_.size() < kReadBytes) {
    const size_t old = input_.size();
    input_.resize(old + kWatchBytes);
    const size_t n = co_await wire_.read(input_.data() + old, kWatchBytes);
    input_.resize(old + n);
    open = n > 0;
  }
  watching_ = false;
  watched_.cancel();
  if (!open && !exchange->complete()) exchange->close();
}

awaitable<void> Connection::end_watch() {
  if (watching_) wire_.cancel();
  while (watching_) {
    error_code ec;
    watched_.expires_at(Clock::time_point::max());
    co_await watched_.async_wait(asio::redirect_error(asio::use_awaitable, ec));
  }
}

// False when the connection is to be closed.
awaitable<bool> Connection::answer(Incoming& in) {
  auto exchange = std::make_shared<Exchange>(wire_.executor(), shared_.options.send_buffer_bytes);
  shared_.handler(std::move(in.request), exchange);
  watching_ = true;
  asio::co_spawn(
      wire_.executor(), [self = shared_from_this(), exchange] { return self->watch(exchange); },
      asio::detached);
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
  co_await end_watch();
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
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(5);
  arm(deadline);
  co_await wire_.shutdown();
  size_t left = size_t{64} << 20;
  input_.resize(kReadBytes);
  while (left > 0 && !timed_out_) {
    const size_t n = co_await wire_.read_raw(input_.data(), kReadBytes);
    if (n == 0) break;
    left -= std::min(left, n);
  }
  disarm();
}

awaitable<void> Connection::run() {
  arm(Clock::now() + seconds(shared_.options.head_seconds));
  const bool secured = co_await wire_.handshake();
  disarm();
  if (!secured) co_return;
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

awaitable<void> serve_connection(Wire::Socket socket, HttpShared& shared) {
  auto connection = std::make_shared<Connection>(std::move(socket), shared);
  co_await connection->run();
}

}  // namespace lorry
