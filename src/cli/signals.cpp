#include "cli/signals.h"

#include <csignal>

namespace lorry {

namespace {

sigset_t signals_of_ours() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGUSR1);  // what mpirun hands on at once, unlike the others
  return set;
}

}  // namespace

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
  for (const int signal : {SIGINT, SIGTERM, SIGUSR1}) std::signal(signal, SIG_IGN);
  pthread_sigmask(SIG_SETMASK, &before_, nullptr);
}

void Signals::wait_forever() {
  const sigset_t set = signals_of_ours();
  int signal = 0;
  while (sigwait(&set, &signal) == 0 && !stopping_) on_signal_();
}

}  // namespace lorry
