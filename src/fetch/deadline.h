// Deadline: how long one resolve() may still take, and whether its caller wants it any more.
// One thread; the flag of FetchControl may be set by another.
#pragma once
#include <atomic>
#include <chrono>
#include <string>

namespace lorry {

class Deadline {
 public:
  // `label` ("hub repository org/name") starts the messages.
  Deadline(std::string label, std::chrono::milliseconds total, const std::atomic<bool>* cancelled);

  bool cancelled() const { return cancelled_ != nullptr && cancelled_->load(); }
  // At least 0.
  std::chrono::milliseconds left() const;
  // Throws Error(unavailable) once the call is cancelled or its time is over.
  void check() const;
  // Sleeps, or until the time is over, then throws as check() does.
  void nap(std::chrono::milliseconds duration) const;
  // A long nap; false, at once, where the time left is shorter.
  bool sleep(std::chrono::milliseconds duration) const;

 private:
  std::string label_;
  std::chrono::milliseconds total_;
  std::chrono::steady_clock::time_point end_;
  const std::atomic<bool>* cancelled_;
};

}  // namespace lorry
