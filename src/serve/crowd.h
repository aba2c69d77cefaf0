// How long those that are refused because the model is busy should stay away: what Retry-After
// says. If everybody came back after a second, a crowd's refusals would cost what answers are made
// of.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>

namespace lorry {

// Any thread.
class Crowd {
 public:
  using Clock = std::chrono::steady_clock;

  void admitted() { admitted_.fetch_add(1, std::memory_order_relaxed); }
  // One is refused; for how many seconds. Twice the time in which all that are away now would be
  // admitted one after the other, from 1 to kLongest.
  int refused(Clock::time_point now = Clock::now());

  static constexpr int kLongest = 60;

 private:
  void begin(Clock::time_point now);

  std::atomic<int64_t> admitted_{0};
  std::mutex mutex_;
  Clock::time_point begin_{};  // of what is counted
  Clock::time_point last_{};   // of a refusal
  int64_t refused_ = 0;
  int64_t admitted_before_ = 0;
  int seconds_ = 1;
};

}  // namespace lorry
