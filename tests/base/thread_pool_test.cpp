#include "base/thread_pool.h"

#include <atomic>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace lorry {
namespace {

class Threads : public testing::TestWithParam<int> {};

TEST_P(Threads, run_calls_the_caller_and_every_worker_that_comes_in_time) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.size(), GetParam());
  for (int round = 0; round < 100; ++round) {
    std::vector<int> calls(static_cast<size_t>(GetParam()), 0);
    std::atomic<int> begun{0};
    pool.run([&](int thread) {
      ++calls[static_cast<size_t>(thread)];
      ++begun;
      while (begun < pool.size()) std::this_thread::yield();  // the caller gives all of them time
    });
    EXPECT_EQ(calls, std::vector<int>(static_cast<size_t>(GetParam()), 1));
  }
}

TEST_P(Threads, a_worker_takes_part_once_at_most_or_not_at_all) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 2000; ++round) {
    std::vector<int> calls(static_cast<size_t>(GetParam()), 0);
    pool.run([&](int thread) { ++calls[static_cast<size_t>(thread)]; });
    EXPECT_EQ(calls[0], 1);
    for (const int n : calls) EXPECT_LE(n, 1);
  }
}

TEST_P(Threads, for_each_does_every_task_once) {
  ThreadPool pool(GetParam());
  for (const int64_t n : {0, 1, 2, 3, 1000}) {
    std::vector<int64_t> results(static_cast<size_t>(n), 0);
    pool.for_each(n, [&](int64_t task) { results[static_cast<size_t>(task)] += task + 1; });
    for (int64_t task = 0; task < n; ++task) {
      ASSERT_EQ(results[static_cast<size_t>(task)], task + 1);
    }
  }
}

TEST_P(Threads, for_each_thread_gives_each_thread_its_own_scratch) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> sums(static_cast<size_t>(GetParam()), 0);
  pool.for_each_thread(
      10000, [&](int64_t task, int thread) { sums[static_cast<size_t>(thread)] += task; });
  EXPECT_EQ(std::accumulate(sums.begin(), sums.end(), int64_t{0}), 10000 * 9999 / 2);
}

TEST_P(Threads, thousands_of_tiny_jobs) {
  ThreadPool pool(GetParam());
  std::vector<int64_t> cells(8, 0);
  for (int round = 0; round < 20000; ++round) {
    pool.for_each(8, [&](int64_t task) { ++cells[static_cast<size_t>(task)]; });
  }
  EXPECT_EQ(cells, std::vector<int64_t>(8, 20000));
}

TEST_P(Threads, workers_sleep_when_idle_and_wake_for_the_next_job) {
  ThreadPool pool(GetParam());
  int64_t done = 0;
  for (int round = 0; round < 3; ++round) {
    while (pool.sleeping() != pool.size() - 1) std::this_thread::yield();
    std::atomic<int> begun{0};
    pool.run([&](int) {
      ++begun;
      while (begun < pool.size()) std::this_thread::yield();
    });
    done += begun;
  }
  EXPECT_EQ(done, 3 * GetParam());
}

INSTANTIATE_TEST_SUITE_P(ThreadPool, Threads, testing::Values(1, 2, 4));

}  // namespace
}  // namespace lorry
