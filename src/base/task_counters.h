// TaskCounters: which thread of a pool does which task. Each takes its tasks one ahead, so that it
// can prefetch. Tasks that read pages of a node are dealt to its threads; a thread without any left
// helps the other nodes, so that one that is held up holds up nobody else.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace lorry {

class TaskCounters {
 public:
  // Requires: the pool outlives this.
  explicit TaskCounters(const ThreadPool& pool)
      : pool_(pool), runs_(static_cast<size_t>(pool.nodes())) {}

  // Tasks [0, n), for whoever comes. No thread is in work().
  void deal(int64_t n) {
    used_ = 1;
    n_ = n;
    runs_[0].set(n, pool_.size(), 0, n);
  }

  // Tasks [0, rows * width): of each `width` that follow each other ThreadPool::first_of(node,
  // width) ... are the node's. No thread is in work().
  void deal_by_node(int64_t rows, int64_t width) {
    if (pool_.nodes() == 1) return deal(rows * width);
    used_ = pool_.nodes();
    n_ = rows * width;
    width_ = width;
    for (int node = 0; node < used_; ++node) {
      const int64_t first = pool_.first_of(node, width);
      const int64_t length = pool_.first_of(node + 1, width) - first;
      runs_[static_cast<size_t>(node)].set(rows * length, pool_.threads_of(node), first, length);
    }
  }

  int64_t size() const { return n_; }

  // f(task, next) for tasks that nobody has taken, until there are none; next: the one that this
  // thread does afterwards, or -1.
  template <class F>
  void work(int thread, F&& f) {
    const int own = used_ == 1 ? 0 : pool_.node_of(thread);
    for (int i = 0; i < used_; ++i) {
      Run& run = runs_[static_cast<size_t>((own + i) % used_)];
      for (int64_t at; (at = run.take()) >= 0;) {
        while (at >= 0) {
          const int64_t next = run.take_ahead();
          f(task_of(run, at), next < 0 ? -1 : task_of(run, next));
          at = next;
        }
      }
    }
  }

 private:
  // The tasks of a node. The first ones are set aside for its threads; those of threads that do not
  // come are left to the others.
  struct alignas(64) Run {
    void set(int64_t count, int threads, int64_t first_of_row, int64_t of_row) {
      n = count;
      set_aside = std::min<int64_t>(count, threads);
      begin = first_of_row;
      length = of_row;
      first.store(0, std::memory_order_relaxed);
      ahead.store(set_aside, std::memory_order_relaxed);
    }
    int64_t take() {
      const int64_t at = first.fetch_add(1, std::memory_order_relaxed);
      return at < set_aside ? at : take_ahead();
    }
    int64_t take_ahead() {
      const int64_t at = ahead.fetch_add(1, std::memory_order_relaxed);
      return at < n ? at : -1;
    }

    int64_t n = 0, set_aside = 0;
    int64_t begin = 0, length = 0;  // its tasks of each row
    std::atomic<int64_t> first{0}, ahead{0};
  };

  int64_t task_of(const Run& run, int64_t at) const {
    return used_ == 1 ? at : at / run.length * width_ + run.begin + at % run.length;
  }

  const ThreadPool& pool_;
  std::vector<Run> runs_;
  int used_ = 1;
  int64_t n_ = 0, width_ = 0;
};

}  // namespace lorry
