// ThreadPool: the compute threads of a backend. run() lets every thread take part in a job;
// for_each() spreads tasks by an atomic counter. Workers spin briefly after a job (a step has
// hundreds, microseconds apart) and then sleep, so an idle server uses no CPU. A job waits only for
// the workers that have begun it: one that the system gives no core to holds nobody up.
// One thread (the owner's) calls run(); it works as thread 0.
// On several NUMA nodes the threads are spread over them, in proportion to their CPUs, and workers
// are bound to the CPUs of their node; with one node, or none named, nothing is bound.
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

#include "base/numa.h"

namespace lorry {

class ThreadPool {
 public:
  // n_threads >= 1, the caller included. Nodes that get no thread are left out.
  explicit ThreadPool(int n_threads, const Topology& topology = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return n_threads_; }
  // Workers that sleep now. Any thread may ask.
  int sleeping() const { return sleepers_.load(); }

  // The nodes that have threads: [0, nodes()), each with threads that follow each other. At
  // least 1.
  int nodes() const { return static_cast<int>(first_thread_.size()) - 1; }
  int node_of(int thread) const { return node_of_[static_cast<size_t>(thread)]; }
  int threads_of(int node) const { return first_thread(node + 1) - first_thread(node); }
  // Of n things in a row, a node has [first_of(node, n), first_of(node + 1, n)).
  int64_t first_of(int node, int64_t n) const { return n * first_thread(node) / n_threads_; }
  // Of these nodes; empty where there is one.
  const Topology& topology() const { return topology_; }
  // Workers that the system would not bind.
  int unbound() const { return unbound_; }
  // For a thread that calls run() from now on, for as long as the result lives. It is up to the
  // caller: a thread passes on to those that it starts what it is bound to.
  [[nodiscard]] ThreadBinding bind_caller() const {
    return topology_.empty() ? ThreadBinding() : ThreadBinding(topology_[0].cpus);
  }

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
  void spread_threads(const Topology& topology);
  int first_thread(int node) const { return first_thread_[static_cast<size_t>(node)]; }

  const int n_threads_;
  Topology topology_;
  std::vector<int> first_thread_;  // [nodes + 1]
  std::vector<int> node_of_;       // [n_threads]
  int unbound_ = 0;
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
