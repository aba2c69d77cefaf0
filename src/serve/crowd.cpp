#include "serve/crowd.h"

#include <algorithm>
#include <cmath>

namespace lorry {

namespace {

double seconds_between(Crowd::Clock::time_point from, Crowd::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void Crowd::begin(Clock::time_point now) {
  begin_ = now;
  refused_ = 0;
  admitted_before_ = admitted_.load(std::memory_order_relaxed);
}

int Crowd::refused(Clock::time_point now) {
  // So long that each of those that are away has come about once; twice that without anybody: they
  // have gone, or were admitted.
  constexpr double kWindow = 1.5;
  std::lock_guard lock(mutex_);
  if (seconds_between(last_, now) > 2 * kWindow * seconds_) {
    seconds_ = 1;
    begin(now);
  }
  last_ = now;
  ++refused_;
  const double passed = seconds_between(begin_, now);
  if (passed < kWindow * seconds_) return seconds_;
  // By Little's law: so many come each second, and each was away so long.
  const double away = static_cast<double>(refused_) / passed * seconds_;
  const auto n = static_cast<double>(admitted_.load(std::memory_order_relaxed) - admitted_before_);
  const double admitted = std::max(1.0, n / passed);
  seconds_ = static_cast<int>(std::clamp(std::ceil(2 * away / admitted), 1.0, double{kLongest}));
  begin(now);
  return seconds_;
}

}  // namespace lorry
