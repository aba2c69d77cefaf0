// WorkerPool: threads for what would block the I/O threads (parsing and tokenising long prompts,
// waiting for the engine's snapshot). Bounded: a full pool refuses.
#pragma once
#include <cstddef>
#include <functional>
#include <thread>
#include <vector>

#include "base/bounded_queue.h"

namespace lorry {

class WorkerPool {
 public:
  WorkerPool(int n_threads, size_t capacity) : queue_(capacity) {
    for (int i = 0; i < n_threads; ++i) {
      threads_.emplace_back([this] {
        while (auto job = queue_.pop()) (*job)();
      });
    }
  }
  ~WorkerPool() { stop(); }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // False when full or stopped. `job` must not throw.
  bool submit(std::function<void()> job) { return queue_.try_push(std::move(job)); }
  size_t waiting() const { return queue_.size(); }

  // Finishes what is queued and joins the threads.
  void stop() {
    queue_.close();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

 private:
  BoundedQueue<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
};

}  // namespace lorry
