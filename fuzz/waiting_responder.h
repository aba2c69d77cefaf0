// A Responder whose strand is the thread that waits for the answer.
#pragma once
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <utility>

#include "base/error.h"
#include "serve/http.h"

namespace lorry::fuzz {

class WaitingResponder final : public Responder {
 public:
  void post(std::function<void()> work) override {
    std::lock_guard lock(mutex_);
    work_.push_back(std::move(work));
    changed_.notify_one();
  }
  void respond(HttpResponse response) override {
    LORRY_CHECK(!begun(), "a second answer to one request");
    answer_ = std::move(response);
    streaming_ = false;
    complete_ = true;
  }
  void prepare_stream(HttpResponse head) override {
    LORRY_CHECK(!begun(), "a second answer to one request");
    answer_ = std::move(head);
    streaming_ = true;
  }
  bool begun() const override { return complete_ || (streaming_ && !answer_.body.empty()); }
  bool write(std::string_view chunk) override {
    LORRY_CHECK(streaming_ && !complete_, "a write out of a stream");
    answer_.body += chunk;
    return true;
  }
  void finish_stream() override { complete_ = true; }
  // Never: what waits for a time here is told of the end as well.
  void at(std::chrono::steady_clock::time_point, std::function<void()>) override {}
  bool closed() const override { return false; }
  void on_close(std::function<void()>) override {}

  // Runs what is posted until the answer is complete.
  const HttpResponse& wait() {
    while (!complete_) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !work_.empty(); });
      const auto work = std::move(work_.front());
      work_.pop_front();
      lock.unlock();
      work();
    }
    return answer_;
  }
  bool streaming() const { return streaming_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> work_;
  HttpResponse answer_;
  bool streaming_ = false;
  bool complete_ = false;
};

}  // namespace lorry::fuzz
