#include "cli/signals.h"

#include <array>

namespace lorry {

namespace {

// SIGUSR1: what mpirun hands on at once, unlike the others.
constexpr std::array kOurs{SIGINT, SIGTERM, SIGUSR1};

sigset_t signals_of_ours() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kOurs) sigaddset(&set, signal);
  return set;
}

}  // namespace

void ignore_signals() {
  for (const int signal : kOurs) std::signal(signal, SIG_IGN);
}

Signals::Signals(std::function<void()> on_signal) : on_signal_(std::move(on_signal)) {
  const sigset_t set = signals_of_ours();
  pthread_sigmask(SIG_BLOCK, &set, &before_);
  thread_ = std::thread([this] { wait_forever(); });
}

Signals::~Signals() {
  stopping_ = true;
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
  // One that comes while the process ends must not change how: it is ending as it was told to.
  ignore_signals();
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void Signals::wait_forever() {
  const sigset_t set = signals_of_ours();
  int signal = 0;
  while (sigwait(&set, &signal) == 0 && !stopping_) on_signal_();
}

}  // namespace lorry
