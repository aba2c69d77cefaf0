#include "serve/http_exchange.h"

#include <utility>

#include <boost/asio/post.hpp>

#include "base/error.h"

namespace lorry {

using boost::system::error_code;

Exchange::Exchange(boost::asio::any_io_executor strand, size_t buffer_bytes)
    : strand_(strand), wake_(strand), alarm_(strand), buffer_bytes_(buffer_bytes) {}

void Exchange::post(std::function<void()> work) {
  boost::asio::post(strand_, [self = shared_from_this(), run = std::move(work)] { run(); });
}

void Exchange::respond(HttpResponse response) {
  LORRY_CHECK(!begun(), "a second answer to one request");
  response_ = std::move(response);
  head_.reset();
  complete_ = true;
  on_close_ = nullptr;
  alarm_.cancel();
  wake_.cancel();
}

void Exchange::prepare_stream(HttpResponse head) {
  LORRY_CHECK(!begun(), "a second answer to one request");
  head_ = std::move(head);
  wake_.cancel();
}

bool Exchange::write(std::string_view chunk) {
  LORRY_CHECK(head_.has_value() && !complete_, "a write out of a stream");
  if (closed_) return false;
  if (output_.size() + chunk.size() > buffer_bytes_) {
    close();
    return false;
  }
  begun_ = true;
  const bool wake = output_.empty();  // else it is awake already
  output_.append(chunk);
  if (wake) wake_.cancel();
  return true;
}

void Exchange::finish_stream() {
  begun_ = true;
  complete_ = true;
  on_close_ = nullptr;
  alarm_.cancel();
  wake_.cancel();
}

void Exchange::at(std::chrono::steady_clock::time_point time, std::function<void()> work) {
  alarm_.expires_at(time);
  alarm_.async_wait([weak = weak_from_this(), run = std::move(work)](const error_code& ec) {
    const auto self = weak.lock();
    if (!ec && self && !self->complete_ && !self->closed_) run();
  });
}

void Exchange::on_close(std::function<void()> callback) {
  if (closed_) {
    callback();
  } else {
    on_close_ = std::move(callback);
  }
}

void Exchange::close() {
  if (closed_) return;
  closed_ = true;
  output_.clear();
  alarm_.cancel();
  wake_.cancel();
  if (auto callback = std::exchange(on_close_, nullptr)) callback();
}

}  // namespace lorry
