// The link of several ranks' devices, by a library that stands in for NCCL.
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/memory.h"
#include "ops/cuda/cuda_ops.h"

namespace lorry::test {
namespace {

using testing::HasSubstr;

// Rank 0's message for threads.
class Post {
 public:
  void broadcast(int rank, std::vector<std::byte>& message) {
    std::unique_lock lock(mutex_);
    if (rank == 0) {
      message_ = message;
      there_ = true;
      changed_.notify_all();
    }
    changed_.wait(lock, [&] { return there_; });
    message = message_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::byte> message_;
  bool there_ = false;
};

// f(rank, ops, link) on a thread for each of `ranks` ranks.
template <class F>
void on_linked_devices(int ranks, int64_t most, F&& f) {
  Post post;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadPool pool(1);
      const auto ops = make_cuda_ops(Dtype::f32, pool);
      const auto link = make_cuda_link(
          *ops, {.rank = rank,
                 .ranks = ranks,
                 .most = most,
                 .library = LORRY_FAKE_NCCL,
                 .broadcast = [&](std::vector<std::byte>& m) { post.broadcast(rank, m); }});
      f(rank, *ops, *link);
    });
  }
  for (std::thread& t : threads) t.join();
}

float value_of(int rank, int64_t i) {
  return std::sin(static_cast<float>(i * 7 + rank)) * std::exp2f(static_cast<float>(rank * 3 % 5));
}

// Of any length: parts of other ranks then do not begin at 16 bytes.
TEST(CudaLink, sums_in_the_order_of_the_ranks_on_each) {
  for (const int ranks : {1, 2, 3, 8}) {
    on_linked_devices(ranks, 1000, [&](int rank, Ops& ops, DeviceLink& link) {
      for (const int64_t n : {1, 4, 255, 256, 257, 1000}) {
        std::vector<float> y(static_cast<size_t>(n));
        for (int64_t i = 0; i < n; ++i) y[static_cast<size_t>(i)] = value_of(rank, i);
        const Buffer own(y.size() * sizeof(float), ops.memory());
        ops.memory()->write(own.data(), reinterpret_cast<std::byte*>(y.data()),
                            y.size() * sizeof(float));
        link.sum(reinterpret_cast<float*>(own.data()), n);
        ops.memory()->read(reinterpret_cast<std::byte*>(y.data()), own.data(),
                           y.size() * sizeof(float));
        for (int64_t i = 0; i < n; ++i) {
          float sum = value_of(0, i);
          for (int r = 1; r < ranks; ++r) sum += value_of(r, i);
          ASSERT_EQ(y[static_cast<size_t>(i)], sum) << ranks << " ranks, " << i << " of " << n;
        }
      }
    });
  }
}

TEST(CudaLink, says_what_is_missing_without_the_library) {
  EXPECT_EQ(why_no_cuda_link(LORRY_FAKE_NCCL), "");
  EXPECT_THAT(why_no_cuda_link("/nowhere/libnccl.so.2"),
              testing::AllOf(HasSubstr("/nowhere/libnccl.so.2"), HasSubstr("nvidia-nccl-cu13"),
                             HasSubstr("--nccl-library")));
}

TEST(CudaLink, another_library_is_refused_by_what_it_lacks) {
  EXPECT_THAT(why_no_cuda_link("libm.so.6"),
              HasSubstr("libm.so.6 has no function ncclGetUniqueId"));
}

TEST(CudaLink, a_refusal_of_the_library_is_an_error_with_its_words) {
  ThreadPool pool(1);
  const auto ops = make_cuda_ops(Dtype::f32, pool);
  try {
    make_cuda_link(*ops, {.rank = 2,
                          .ranks = 2,
                          .most = 1,
                          .library = LORRY_FAKE_NCCL,
                          .broadcast = [](std::vector<std::byte>&) {}});
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("NCCL: a group of GPUs: invalid argument"));
  }
}

}  // namespace
}  // namespace lorry::test
