// Threads and tasks on several NUMA nodes, which are parts of this machine's CPUs.
#include "base/numa.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/fake_nodes.h"
#include "base/task_counters.h"
#include "base/thread_pool.h"

namespace lorry {
namespace {

using test::fake_nodes;

std::vector<int> threads_of_nodes(const ThreadPool& pool) {
  std::vector<int> all;
  for (int node = 0; node < pool.nodes(); ++node) all.push_back(pool.threads_of(node));
  return all;
}

TEST(NumaPool, SpreadsThreadsInProportionToCpus) {
  const Topology even{{0, {0}}, {1, {1}}};
  EXPECT_EQ(threads_of_nodes(ThreadPool(4, even)), (std::vector<int>{2, 2}));
  EXPECT_EQ(threads_of_nodes(ThreadPool(5, even)), (std::vector<int>{3, 2}));
  const Topology uneven{{0, {0, 1, 2}}, {1, {3}}};
  EXPECT_EQ(threads_of_nodes(ThreadPool(8, uneven)), (std::vector<int>{6, 2}));
  const Topology four{{0, {0}}, {1, {1}}, {2, {2}}, {3, {3}}};
  EXPECT_EQ(threads_of_nodes(ThreadPool(2, four)), (std::vector<int>{1, 1}));
  const ThreadPool pool(4, even);
  for (int thread = 0; thread < 4; ++thread) EXPECT_EQ(pool.node_of(thread), thread / 2);
}

TEST(NumaPool, OfOneNodeOrOneThreadBindsNothing) {
  const std::vector<int> before = usable_cpus();
  for (const int threads : {1, 2}) {
    for (const Topology& topology : {Topology{}, fake_nodes(1), fake_nodes(threads == 1 ? 3 : 1)}) {
      ThreadPool pool(threads, topology);
      EXPECT_EQ(pool.nodes(), 1);
      EXPECT_TRUE(pool.topology().empty());
      EXPECT_FALSE(pool.bind_caller().bound());
      std::atomic<int> begun{0};
      pool.run([&](int) {
        ++begun;
        while (begun < pool.size()) std::this_thread::yield();
        EXPECT_EQ(usable_cpus(), before);
      });
    }
  }
}

TEST(NumaPool, ThreadsAreOnTheCpusOfTheirNode) {
  const std::vector<int> before = usable_cpus();
  const Topology nodes = fake_nodes(2);
  ThreadPool pool(4, nodes);
  ASSERT_EQ(pool.nodes(), 2);
  EXPECT_EQ(pool.unbound(), 0);
  {
    const ThreadBinding bound = pool.bind_caller();
    ASSERT_TRUE(bound.bound());
    std::vector<std::vector<int>> cpus(4);
    std::atomic<int> begun{0};
    pool.run([&](int thread) {
      cpus[static_cast<size_t>(thread)] = usable_cpus();
      ++begun;
      while (begun < pool.size()) std::this_thread::yield();
    });
    for (int thread = 0; thread < 4; ++thread) {
      EXPECT_EQ(cpus[static_cast<size_t>(thread)],
                nodes[static_cast<size_t>(pool.node_of(thread))].cpus);
    }
  }
  EXPECT_EQ(usable_cpus(), before);  // the caller is as free as it was
}

TEST(NumaPool, SaysHowManyThreadsTheSystemDoesNotBind) {
  Topology nodes = fake_nodes(2);
  nodes[1].cpus = {65535};  // more than Linux can have
  const ThreadPool pool(4, nodes);
  EXPECT_EQ(pool.unbound(), 2);
}

TEST(NumaPool, SharesFollowEachOtherAndLeaveNothingOut) {
  const ThreadPool pool(5, fake_nodes(3));
  for (const int64_t n : {0, 1, 2, 3, 7, 100}) {
    EXPECT_EQ(pool.first_of(0, n), 0);
    EXPECT_EQ(pool.first_of(pool.nodes(), n), n);
    for (int node = 0; node < pool.nodes(); ++node) {
      EXPECT_LE(pool.first_of(node, n), pool.first_of(node + 1, n));
    }
  }
}

struct Case {
  int threads, nodes;
};
class Tasks : public testing::TestWithParam<Case> {
 protected:
  Tasks() : pool_(GetParam().threads, fake_nodes(GetParam().nodes)), tasks_(pool_) {}
  // Each thread of `threads`, one after the other.
  std::vector<std::vector<int64_t>> done_by(const std::vector<int>& threads) {
    std::vector<std::vector<int64_t>> done;
    for (const int thread : threads) {
      std::vector<int64_t>& own = done.emplace_back();
      int64_t promised = -1;
      tasks_.work(thread, [&](int64_t task, int64_t next) {
        if (promised >= 0) {
          EXPECT_EQ(task, promised);
        }
        promised = next;
        own.push_back(task);
      });
      EXPECT_EQ(promised, -1);
    }
    return done;
  }

  ThreadPool pool_;
  TaskCounters tasks_;
};

void expect_each_once(std::vector<int64_t> done, int64_t n) {
  std::sort(done.begin(), done.end());
  ASSERT_EQ(static_cast<int64_t>(done.size()), n);
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(done[static_cast<size_t>(i)], i);
}

TEST_P(Tasks, AreDoneOnceByAllThreadsWithTheNextOneForetold) {
  for (int round = 0; round < 300; ++round) {
    for (const auto& [rows, width] : {std::pair<int64_t, int64_t>{1, 1}, {3, 1}, {1, 7}, {5, 9}}) {
      tasks_.deal_by_node(rows, width);
      EXPECT_EQ(tasks_.size(), rows * width);
      std::vector<std::atomic<int>> times(static_cast<size_t>(rows * width));
      pool_.run([&](int thread) {
        int64_t promised = -1;
        tasks_.work(thread, [&](int64_t task, int64_t next) {
          if (promised >= 0) {
            EXPECT_EQ(task, promised);
          }
          promised = next;
          ++times[static_cast<size_t>(task)];
        });
      });
      for (const auto& n : times) ASSERT_EQ(n, 1);
    }
  }
}

TEST_P(Tasks, OfThreadsThatNeverComeAreDoneByTheOthers) {
  for (int thread = 0; thread < pool_.size(); ++thread) {
    tasks_.deal_by_node(4, 11);
    expect_each_once(done_by({thread})[0], 44);
    tasks_.deal(29);
    expect_each_once(done_by({thread})[0], 29);
    tasks_.deal_by_node(0, 5);
    EXPECT_TRUE(done_by({thread})[0].empty());
  }
}

// But for the one that it is at, and the next one.
TEST_P(Tasks, OfAThreadThatIsHeldUpAreDoneByTheOthers) {
  tasks_.deal_by_node(4, 11);
  std::vector<int64_t> own, others;
  tasks_.work(0, [&](int64_t task, int64_t) {
    own.push_back(task);
    if (own.size() > 1) return;
    for (int thread = pool_.size() - 1; thread >= 0; --thread) {
      tasks_.work(thread, [&](int64_t other, int64_t) { others.push_back(other); });
    }
    EXPECT_EQ(others.size(), 42U);
  });
  others.insert(others.end(), own.begin(), own.end());
  expect_each_once(others, 44);
}

// One thread alone does those of its node first.
TEST_P(Tasks, OfItsOwnNodeAreAThreadsFirst) {
  constexpr int64_t kRows = 3, kWidth = 13;
  for (int thread = 0; thread < pool_.size(); ++thread) {
    const int node = pool_.node_of(thread);
    const int64_t first = pool_.first_of(node, kWidth), end = pool_.first_of(node + 1, kWidth);
    tasks_.deal_by_node(kRows, kWidth);
    const std::vector<int64_t> done = done_by({thread})[0];
    for (int64_t i = 0; i < kRows * (end - first); ++i) {
      const int64_t column = done[static_cast<size_t>(i)] % kWidth;
      EXPECT_TRUE(column >= first && column < end) << "task " << i << " of thread " << thread;
    }
  }
}

TEST_P(Tasks, ThatWereSetAsideForALateThreadAreDoneOnce) {
  tasks_.deal_by_node(2, 20);
  std::vector<int> order;
  for (int thread = pool_.size() - 1; thread >= 0; --thread) order.push_back(thread);
  std::vector<int64_t> all;
  for (const auto& own : done_by(order)) all.insert(all.end(), own.begin(), own.end());
  expect_each_once(all, 40);
}

INSTANTIATE_TEST_SUITE_P(Numa, Tasks,
                         testing::Values(Case{1, 1}, Case{2, 1}, Case{2, 2}, Case{3, 2}, Case{4, 3},
                                         Case{2, 4}));

}  // namespace
}  // namespace lorry
