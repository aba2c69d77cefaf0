#include "base/thread_pool.h"

#include <chrono>

#include "base/cpu_relax.h"
#include "base/error.h"

namespace lorry {

namespace {

// Long enough to cover the serial work between two jobs of a step, short enough that an idle
// pool is asleep within a fraction of a millisecond.
constexpr auto kSpin = std::chrono::microseconds(200);
constexpr int kPausesPerClockRead = 64;

// Of gate_: the number of the job above, then whether it is open, then how many have entered.
constexpr int kNumberShift = 17;
constexpr uint64_t kOpen = uint64_t{1} << 16;
constexpr uint64_t kEntered = kOpen - 1;

template <class Condition>
bool spin_until(Condition&& condition) {
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  while (true) {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (condition()) return true;
      cpu_relax();
    }
    if (std::chrono::steady_clock::now() > deadline) return false;
    // Costs under a microsecond where every thread has a core; where it has not, the thread that
    // is waited for gets one.
    std::this_thread::yield();
  }
}

}  // namespace

ThreadPool::ThreadPool(int n_threads, const Topology& topology) : n_threads_(n_threads) {
  LORRY_CHECK(n_threads >= 1 && n_threads <= 65535, "{}", n_threads);
  spread_threads(topology);
  for (int i = 1; i < n_threads; ++i) {
    threads_.emplace_back([this, i] { work(i); });
    if (topology_.empty()) continue;
    const NumaNode& node = topology_[static_cast<size_t>(node_of(i))];
    if (!bind_thread(threads_.back().native_handle(), node.cpus)) ++unbound_;
  }
}

// Each node gets its share of the threads, rounded.
void ThreadPool::spread_threads(const Topology& topology) {
  int64_t all = 0;
  for (const NumaNode& node : topology) all += static_cast<int64_t>(node.cpus.size());
  int64_t before = 0;  // CPUs
  for (const NumaNode& node : topology) {
    const auto first = static_cast<int>(node_of_.size());
    before += static_cast<int64_t>(node.cpus.size());
    const auto end = static_cast<int>((n_threads_ * before + all / 2) / all);
    if (end == first) continue;
    node_of_.resize(static_cast<size_t>(end), static_cast<int>(topology_.size()));
    first_thread_.push_back(first);
    topology_.push_back(node);
  }
  if (topology_.size() <= 1) {
    topology_.clear();
    first_thread_ = {0};
    node_of_.assign(static_cast<size_t>(n_threads_), 0);
  }
  first_thread_.push_back(n_threads_);
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    gate_.store(++number_ << kNumberShift);
  }
  wake_.notify_all();
  for (std::thread& t : threads_) t.join();
}

void ThreadPool::run_erased(Job job, void* argument) {
  if (n_threads_ == 1) {
    job(argument, 0);
    return;
  }
  job_ = job;
  argument_ = argument;
  done_.store(0, std::memory_order_relaxed);
  // Sequentially consistent, as the read of sleepers_ below must follow it.
  gate_.store((++number_ << kNumberShift) | kOpen);
  if (sleepers_.load() != 0) {
    std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  job(argument, 0);
  const uint64_t entered = gate_.exchange(number_ << kNumberShift) & kEntered;
  const auto all_done = [&] { return done_.load(std::memory_order_acquire) == entered; };
  while (!spin_until(all_done)) {
  }
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  while (true) {
    const auto changed = [&] { return gate_.load() >> kNumberShift != seen; };
    if (!spin_until(changed)) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, changed);
      sleepers_.fetch_sub(1);
    }
    uint64_t gate = gate_.load();
    if (stopping_) return;
    seen = gate >> kNumberShift;
    while ((gate & kOpen) != 0 && gate >> kNumberShift == seen) {
      if (!gate_.compare_exchange_weak(gate, gate + 1)) continue;
      job_(argument_, thread);
      done_.fetch_add(1, std::memory_order_release);
      break;
    }
  }
}

}  // namespace lorry
