// Exchange: one request's Responder. The handler's side fills it, the connection's side sends what
// is in it; both on the connection's strand. It outlives the request where the handler holds it.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>

#include "serve/http.h"

namespace lorry {

class Exchange final : public Responder, public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(boost::asio::any_io_executor strand, size_t buffer_bytes);

  void post(std::function<void()> work) override;
  void respond(HttpResponse response) override;
  void prepare_stream(HttpResponse head) override;
  bool begun() const override { return begun_ || complete_; }
  bool write(std::string_view chunk) override;
  void finish_stream() override;
  void at(std::chrono::steady_clock::time_point time, std::function<void()> work) override;
  bool closed() const override { return closed_; }
  void on_close(std::function<void()> callback) override;

  // The connection's side.
  void close();  // no answer can arrive any more
  void begin() { begun_ = true; }
  bool complete() const { return complete_; }
  bool streaming() const { return head_.has_value(); }
  // The whole answer; empty while there is none, or when it is a stream.
  std::optional<HttpResponse>& response() { return response_; }
  HttpResponse& head() { return *head_; }
  std::string take_output() { return std::exchange(output_, {}); }
  bool has_output() const { return !output_.empty(); }
  // Its handlers run when something changed.
  boost::asio::steady_timer& wake() { return wake_; }

 private:
  boost::asio::any_io_executor strand_;
  boost::asio::steady_timer wake_, alarm_;
  const size_t buffer_bytes_;
  std::optional<HttpResponse> response_;
  std::optional<HttpResponse> head_;
  std::string output_;
  std::function<void()> on_close_;
  bool begun_ = false;
  bool complete_ = false;
  bool closed_ = false;
};

}  // namespace lorry
