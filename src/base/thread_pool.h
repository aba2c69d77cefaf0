// ThreadPool: the compute threads of a backend. run() lets every thread take part in a job;
// for_each() spreads tasks by an atomic counter. Workers spin briefly after a job (a step has
// hundreds, microseconds apart) and then sleep, so an idle server uses no CPU. A job waits only for
// the workers that have begun it: one that the system gives no core to holds nobody up.
// One thread (the owner's) calls run(); it works as thread 0.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace lorry {

class ThreadPool {
 public:
  // n_threads >= 1, the caller included.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return n_threads_; }
  // Workers that sleep now. Any thread may ask.
  int sleeping() const { return sleepers_.load(); }

  // Calls f(0) on the caller and f(thread) on each worker that comes before f(0) has returned, once
  // at most; returns when all calls have. So f must take its work from a common counter, and end
  // when there is none left. f must not throw.
  template <class F>
  void run(F&& f) {
    using Plain = std::remove_reference_t<F>;
    run_erased([](void* p, int thread) { (*static_cast<Plain*>(p))(thread); },
               const_cast<void*>(static_cast<const void*>(&f)));
  }

  // Calls f(task) for every task in [0, n), in any order, on any thread. f must not throw.
  template <class F>
  void for_each(int64_t n, F&& f) {
    for_each_thread(n, [&f](int64_t task, int) { f(task); });
  }

  // As for_each, with f(task, thread) for per-thread scratch.
  template <class F>
  void for_each_thread(int64_t n, F&& f) {
    if (n <= 1 || n_threads_ == 1) {
      for (int64_t i = 0; i < n; ++i) f(i, 0);
      return;
    }
    next_.store(0, std::memory_order_relaxed);
    run([&](int thread) {
      for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n;) f(i, thread);
    });
  }

 private:
  using Job = void (*)(void*, int);
  void run_erased(Job job, void* argument);
  void work(int thread);

  const int n_threads_;
  std::atomic<int64_t> next_{0};
  // What workers look at: the number of the job, whether it can still be entered, and how many
  // workers have entered it. A new number publishes job_ and argument_.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<uint64_t> done_{0};  // workers that have finished the job
  uint64_t number_ = 0;                        // of the job; the caller's
  Job job_ = nullptr;
  void* argument_ = nullptr;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  std::vector<std::thread> threads_;
};

}  // namespace lorry
