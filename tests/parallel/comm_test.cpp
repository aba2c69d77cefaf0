// Comm over shared memory: what each call leaves on each rank, with ranks that are late.
#include "parallel/comm.h"

#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lorry/error.h"
#include "parallel/one_host.h"
#include "parallel/shared_memory.h"

namespace lorry {
namespace {

void on_ranks(int n, const std::function<void(Comm&)>& f) {
  const auto memory = SharedMemory::create(n);
  std::vector<std::thread> threads;
  for (int r = 0; r < n; ++r) {
    threads.emplace_back([&, r] {
      const auto comm = make_shared_memory_comm(memory, r);
      f(*comm);
    });
  }
  for (std::thread& t : threads) t.join();
}

// [rows, cols] f32 within rows of `pitch`.
struct Matrix {
  Matrix(int64_t rows, int64_t cols, int64_t pitch)
      : values(static_cast<size_t>(rows * pitch), -7.0F) {
    tensor = view(values.data(), Dtype::f32, {rows, cols});
    tensor.pitch = pitch;
  }
  std::vector<float> values;
  Tensor tensor;
};

float value_of(int rank, int64_t r, int64_t c) {
  return std::sin(static_cast<float>(1 + rank * 1000 + r * 31 + c));
}

void fill(const Tensor& t, int rank) {
  for (int64_t r = 0; r < t.rows(); ++r) {
    for (int64_t c = 0; c < t.cols(); ++c) t.row<float>(r)[c] = value_of(rank, r, c);
  }
}

class Ranks : public testing::TestWithParam<int> {};

TEST_P(Ranks, all_reduce_sums_in_the_order_of_the_ranks) {
  // One value, rows with gaps, many parts of a slot, a row longer than a slot.
  struct Size {
    int64_t rows, cols, pitch;
  };
  for (const Size& s :
       {Size{1, 1, 1}, Size{3, 5, 8}, Size{300, 1000, 1008}, Size{2, 70000, 70001}}) {
    on_ranks(GetParam(), [&](Comm& comm) {
      Matrix m(s.rows, s.cols, s.pitch);
      fill(m.tensor, comm.rank());
      comm.all_reduce(m.tensor);
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t c = 0; c < s.cols; ++c) {
          float want = value_of(0, r, c);
          for (int k = 1; k < comm.size(); ++k) want += value_of(k, r, c);
          ASSERT_EQ(m.tensor.row<float>(r)[c], want) << r << " " << c;
        }
        for (int64_t c = s.cols; c < s.pitch; ++c) ASSERT_EQ(m.tensor.row<float>(r)[c], -7.0F);
      }
    });
  }
}

TEST_P(Ranks, gather_puts_uneven_parts_side_by_side) {
  for (const int64_t widest : {int64_t{3}, int64_t{100}, int64_t{80000}}) {
    on_ranks(GetParam(), [&](Comm& comm) {
      std::vector<int64_t> widths;
      int64_t all = 0;
      for (int r = 0; r < comm.size(); ++r) {
        widths.push_back(std::max<int64_t>(1, widest - r));
        all += widths.back();
      }
      Matrix part(5, widths[static_cast<size_t>(comm.rank())], widest + 3);
      fill(part.tensor, comm.rank());
      Matrix whole(5, all, all + 1);
      comm.gather(comm.rank() == 0 ? whole.tensor : Tensor{}, part.tensor, widths);
      if (comm.rank() != 0) return;
      for (int64_t r = 0; r < 5; ++r) {
        int64_t at = 0;
        for (int k = 0; k < comm.size(); ++k) {
          for (int64_t c = 0; c < widths[static_cast<size_t>(k)]; ++c, ++at) {
            ASSERT_EQ(whole.tensor.row<float>(r)[at], value_of(k, r, c)) << r << " " << at;
          }
        }
      }
    });
  }
}

Bytes message_of(int rank, size_t n) {
  Bytes m(n);
  for (size_t i = 0; i < n; ++i) m[i] = static_cast<std::byte>(i * 7 + static_cast<size_t>(rank));
  return m;
}

TEST_P(Ranks, broadcast_and_collect_of_any_length) {
  for (const size_t n : {size_t{0}, size_t{1}, size_t{60000}, size_t{262136}, size_t{1000000}}) {
    on_ranks(GetParam(), [&](Comm& comm) {
      Bytes m = comm.rank() == 0 ? message_of(0, n) : message_of(3, 5);
      comm.broadcast(m);
      EXPECT_EQ(m, message_of(0, n));
      const size_t own = std::min<size_t>(n, 60000) / static_cast<size_t>(1 + comm.rank());
      const auto all = comm.collect(message_of(comm.rank(), own));
      ASSERT_EQ(all.size(), comm.rank() == 0 ? static_cast<size_t>(comm.size()) : 0U);
      for (size_t r = 0; r < all.size(); ++r) {
        EXPECT_EQ(all[r], message_of(static_cast<int>(r), std::min<size_t>(n, 60000) / (1 + r)));
      }
    });
  }
}

TEST_P(Ranks, a_long_run_of_calls_with_late_ranks) {
  on_ranks(GetParam(), [&](Comm& comm) {
    std::mt19937 late(static_cast<unsigned>(comm.rank()));
    for (int i = 0; i < 300; ++i) {
      if (late() % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      Matrix m(1, 1 + i % 9, 16);
      fill(m.tensor, comm.rank() + i);
      comm.all_reduce(m.tensor);
      float want = value_of(i, 0, 0);
      for (int k = 1; k < comm.size(); ++k) want += value_of(i + k, 0, 0);
      ASSERT_EQ(m.tensor.row<float>(0)[0], want);
      ASSERT_EQ(least_of(comm, 100 * i + comm.rank()), 100 * i);
    }
  });
}

// In two places by turns, as the contract asks; other calls come between.
TEST_P(Ranks, parts_in_common_memory_are_those_of_all_ranks_where_they_lie) {
  constexpr size_t kBytes = 3 * 16 * sizeof(float);
  on_ranks(GetParam(), [&](Comm& comm) {
    std::byte* memory = comm.common_memory(2 * kBytes);
    ASSERT_NE(memory, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 4096, 0U);
    EXPECT_EQ(memory[2 * kBytes - 1], std::byte{0});
    std::mt19937 late(static_cast<unsigned>(comm.rank()));
    for (int i = 0; i < 300; ++i) {
      if (late() % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      Tensor y = view(memory + (i % 2 == 0 ? 0 : kBytes), Dtype::f32, {3, 13});
      y.pitch = 16;
      fill(y, comm.rank() + i);
      const auto parts = comm.parts(y);
      ASSERT_EQ(parts.size(), static_cast<size_t>(comm.size()));
      EXPECT_EQ(parts[static_cast<size_t>(comm.rank())].data, y.data);
      for (int k = 0; k < comm.size(); ++k) {
        const Tensor& part = parts[static_cast<size_t>(k)];
        ASSERT_EQ(part.rows(), 3);
        for (int64_t r = 0; r < 3; ++r) {
          for (int64_t c = 0; c < 13; ++c) {
            ASSERT_EQ(part.row<float>(r)[c], value_of(k + i, r, c)) << k << " " << i;
          }
        }
      }
      if (i % 7 == 0) {
        ASSERT_EQ(least_of(comm, 100 * i + comm.rank()), 100 * i);
      }
    }
    EXPECT_EQ(comm.bytes_sent(), 300 * 3 * 13 * 4);
  });
}

TEST_P(Ranks, parts_that_lie_elsewhere_are_summed) {
  on_ranks(GetParam(), [&](Comm& comm) {
    comm.common_memory(64);
    Matrix m(2, 5, 8);
    fill(m.tensor, comm.rank());
    const auto parts = comm.parts(m.tensor);
    ASSERT_EQ(parts.size(), 1U);
    EXPECT_EQ(parts[0].data, m.tensor.data);
    float want = value_of(0, 1, 4);
    for (int k = 1; k < comm.size(); ++k) want += value_of(k, 1, 4);
    EXPECT_EQ(m.tensor.row<float>(1)[4], want);
  });
}

TEST_P(Ranks, common_memory_that_nobody_has_is_refused) {
  on_ranks(GetParam(),
           [&](Comm& comm) { EXPECT_THROW(comm.common_memory(size_t{1} << 60), Error); });
}

TEST_P(Ranks, bytes_sent_are_those_of_the_values) {
  on_ranks(GetParam(), [&](Comm& comm) {
    Matrix m(10, 100, 100);
    comm.all_reduce(m.tensor);
    EXPECT_EQ(comm.bytes_sent(), 4000);
    const std::vector<int64_t> widths(static_cast<size_t>(comm.size()), 100);
    Matrix whole(10, 100 * comm.size(), 100 * comm.size());
    comm.gather(whole.tensor, m.tensor, widths);
    EXPECT_EQ(comm.bytes_sent(), comm.rank() == 0 ? 4000 : 8000);
  });
}

INSTANTIATE_TEST_SUITE_P(Counts, Ranks, testing::Values(1, 2, 3, 8));

TEST(SharedMemory, a_descriptor_of_something_else_is_refused) {
  const auto memory = SharedMemory::create(2);
  const int copy = dup(memory->descriptor());
  EXPECT_EQ(SharedMemory::attach(copy)->ranks(), 2);
  const auto is_open = [](int descriptor) { return fcntl(descriptor, F_GETFD) >= 0; };
  const int small = memfd_create("lorry-test", 0);
  EXPECT_THROW(SharedMemory::attach(small), Error);
  EXPECT_FALSE(is_open(small));
  const int other = memfd_create("lorry-test", 0);
  ASSERT_EQ(ftruncate(other, 4 << 20), 0);
  EXPECT_THROW(SharedMemory::attach(other), Error);
  EXPECT_FALSE(is_open(other));
  EXPECT_THROW(SharedMemory::attach(-1), Error);
}

// Says of its ranks that `local` of them share a host.
class Spread final : public Comm {
 public:
  Spread(Comm& comm, int local, bool& ended) : comm_(comm), local_(local), ended_(ended) {}
  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  int local_size() const override { return local_; }
  void all_reduce(Tensor x) override { comm_.all_reduce(x); }
  void gather(Tensor whole, Tensor part, std::span<const int64_t> widths) override {
    comm_.gather(whole, part, widths);
  }
  void broadcast(Bytes& message) override {
    comm_.broadcast(message);
    if (lie_ && comm_.rank() == 2) message[0] ^= std::byte{0x55};  // another process
  }
  std::vector<Bytes> collect(std::span<const std::byte> message) override {
    return comm_.collect(message);
  }
  void end() override { ended_ = true; }
  int64_t bytes_sent() const override { return comm_.bytes_sent(); }
  void lie() { lie_ = true; }

 private:
  Comm& comm_;
  int local_;
  bool& ended_;
  bool lie_ = false;
};

// Whether ranks that say so have met in shared memory, where they can add and end.
bool meet(int local, bool one_lies) {
  std::array<bool, 3> met{}, ended{};
  on_ranks(3, [&](Comm& messages) {
    const auto rank = static_cast<size_t>(messages.rank());
    auto spread = std::make_unique<Spread>(messages, local, ended[rank]);
    if (one_lies) spread->lie();
    const auto comm = share_one_host(std::move(spread));
    Matrix m(1, 4, 4);
    fill(m.tensor, comm->rank());
    comm->all_reduce(m.tensor);
    EXPECT_EQ(m.tensor.row<float>(0)[3], value_of(0, 0, 3) + value_of(1, 0, 3) + value_of(2, 0, 3));
    EXPECT_EQ(comm->bytes_sent(), 16);
    comm->end();
    met[rank] = messages.bytes_sent() == 0;
  });
  EXPECT_EQ(ended, (std::array{true, true, true}));
  EXPECT_EQ(met[0], met[1]);
  EXPECT_EQ(met[0], met[2]);
  return met[0];
}

TEST(OneHost, ranks_that_share_one_meet_in_its_memory) { EXPECT_TRUE(meet(3, false)); }
TEST(OneHost, ranks_of_several_go_on_by_messages) { EXPECT_FALSE(meet(2, false)); }
TEST(OneHost, where_one_cannot_open_the_memory_nobody_uses_it) { EXPECT_FALSE(meet(3, true)); }

}  // namespace
}  // namespace lorry
