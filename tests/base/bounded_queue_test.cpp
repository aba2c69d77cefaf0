#include "base/bounded_queue.h"

#include <memory>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace lorry {
namespace {

TEST(BoundedQueue, is_first_in_first_out) {
  BoundedQueue<int> queue(3);
  for (int i = 1; i <= 3; ++i) EXPECT_TRUE(queue.try_push(int{i}));
  EXPECT_EQ(queue.size(), 3U);
  for (int i = 1; i <= 3; ++i) EXPECT_EQ(queue.pop(), i);
  EXPECT_EQ(queue.try_pop(), std::nullopt);
}

TEST(BoundedQueue, refuses_when_full_and_leaves_the_item) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  EXPECT_TRUE(queue.try_push(std::make_unique<int>(1)));
  auto second = std::make_unique<int>(2);
  EXPECT_FALSE(queue.try_push(std::move(second)));
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(**queue.pop(), 1);
  EXPECT_TRUE(queue.try_push(std::move(second)));
}

TEST(BoundedQueue, close_refuses_new_items_and_drains_the_old) {
  BoundedQueue<int> queue(4);
  EXPECT_TRUE(queue.try_push(7));
  queue.close();
  EXPECT_FALSE(queue.try_push(8));
  EXPECT_EQ(queue.pop(), 7);
  EXPECT_EQ(queue.pop(), std::nullopt);
}

TEST(BoundedQueue, close_wakes_every_waiter) {
  BoundedQueue<int> queue(1);
  std::vector<std::thread> waiters;
  for (int i = 0; i < 3; ++i) {
    waiters.emplace_back([&] { EXPECT_EQ(queue.pop(), std::nullopt); });
  }
  queue.close();
  for (std::thread& t : waiters) t.join();
}

TEST(BoundedQueue, nothing_is_lost_between_threads) {
  BoundedQueue<int> queue(8);
  constexpr int kEach = 5000;
  std::vector<std::thread> producers;
  for (int p = 0; p < 2; ++p) {
    producers.emplace_back([&] {
      for (int i = 1; i <= kEach; ++i) {
        while (!queue.try_push(int{i})) std::this_thread::yield();
      }
    });
  }
  int64_t sum = 0;
  for (int i = 0; i < 2 * kEach; ++i) sum += queue.pop().value();
  for (std::thread& t : producers) t.join();
  EXPECT_EQ(sum, int64_t{kEach} * (kEach + 1));
  EXPECT_EQ(queue.size(), 0U);
}

}  // namespace
}  // namespace lorry
