// ThreadPool: the compute threads of a backend. run() gives every thread one call; for_each()
// spreads tasks by an atomic counter. Workers spin briefly after a job (a step has hundreds,
// microseconds apart) and then sleep, so an idle server uses no CPU.
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

  // Calls f(thread) once on every thread; returns when all have. f must not throw.
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
  // A new epoch publishes job_ and argument_; done_ counts the workers that finished it.
  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<int> done_{0};
  Job job_ = nullptr;
  void* argument_ = nullptr;
  bool stopping_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> sleepers_{0};
  std::vector<std::thread> threads_;
};

}  // namespace lorry
