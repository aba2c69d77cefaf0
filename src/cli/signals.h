// Signals: calls back on every SIGINT, SIGTERM and SIGUSR1, from a thread of its own, where
// anything may be done. Made before other threads are: they inherit that these signals are not for
// them. Made and destroyed by one thread, at the end of a command: from then on they are ignored.
#pragma once
#include <atomic>
#include <csignal>
#include <functional>
#include <thread>

namespace lorry {

// From now on these three do nothing to the process.
void ignore_signals();

class Signals {
 public:
  explicit Signals(std::function<void()> on_signal);
  ~Signals();
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

 private:
  void wait_forever();

  std::function<void()> on_signal_;
  std::atomic<bool> stopping_{false};
  sigset_t before_{};
  std::thread thread_;
};

}  // namespace lorry
