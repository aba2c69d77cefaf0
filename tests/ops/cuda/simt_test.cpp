// The machine that runs kernels on the processor: what it computes, and what it refuses.
#include "ops/cuda/simt/simt.h"

#include <cmath>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "ops/cuda/bulk.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/layout.h"
#include "ops/cuda/mma.h"

namespace lorry::test {
namespace {

using simt::Schedule;

struct SumArgs {
  const float* x;
  float* y;
};

// Every thread gives its value to the block's shared memory; the first one of each warp adds.
void sum_kernel(SumArgs a) {
  auto* shared = reinterpret_cast<float*>(cuda::shared_bytes());
  shared[threadIdx.x] = a.x[blockIdx.x * blockDim.x + threadIdx.x];
  cuda::sync_threads();
  const float other = shared[blockDim.x - 1 - threadIdx.x];
  const float sum = cuda::warp_sum(other);
  if (cuda::lane_index() == 0) {
    a.y[blockIdx.x * (blockDim.x / 32) + static_cast<unsigned>(cuda::warp_index())] = sum;
  }
}

TEST(Simt, barriers_shuffles_and_shared_memory_work_in_both_orders) {
  std::vector<float> x(3 * 128);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  for (const Schedule s : {Schedule::forward, Schedule::backward}) {
    simt::set_schedule(s);
    std::vector<float> y(3 * 4);
    cuda::start<SumArgs, sum_kernel>("sum", {3}, 128, 128 * sizeof(float), nullptr,
                                     {x.data(), y.data()});
    for (size_t block = 0; block < 3; ++block) {
      for (size_t warp = 0; warp < 4; ++warp) {
        float expected = 0;
        for (size_t lane = 0; lane < 32; ++lane)
          expected += x[block * 128 + 127 - warp * 32 - lane];
        EXPECT_EQ(y[block * 4 + warp], expected);
      }
    }
  }
}

void half_a_barrier(SumArgs) {
  if (threadIdx.x < 32) cuda::sync_threads();
}
void half_a_warp(SumArgs a) {
  if (threadIdx.x < 16) a.y[0] = cuda::warp_sum(1.0F);
}

TEST(Simt, what_not_all_threads_reach_aborts) {
  float y = 0;
  const auto run = [&](auto start) {
    start("bad", cuda::Grid{1}, 64, 0, nullptr, SumArgs{&y, &y});
  };
  EXPECT_DEATH(run(cuda::start<SumArgs, half_a_barrier>), "32 wait at a barrier, 32 have ended");
  EXPECT_DEATH(run(cuda::start<SumArgs, half_a_warp>), "0 wait at a barrier, 48 have ended");
}

TEST(Simt, shared_memory_starts_as_nan) {
  float y = 0;
  const auto kernel = [](const void* p) {
    if (threadIdx.x == 0) {
      *static_cast<const SumArgs*>(p)->y = *reinterpret_cast<float*>(cuda::shared_bytes());
    }
  };
  const SumArgs args{nullptr, &y};
  simt::run({1}, {32}, 64, kernel, &args);
  EXPECT_TRUE(std::isnan(y));
}

// The second warp copies, twice into the same place, the first one reads.
void copy_kernel(SumArgs a) {
  auto* values = reinterpret_cast<float*>(cuda::shared_bytes());
  auto* full = reinterpret_cast<cuda::Barrier*>(values + 32);
  cuda::Barrier* empty = full + 1;
  if (threadIdx.x == 0) {
    cuda::init_barrier(full, 1);
    cuda::init_barrier(empty, 32);
  }
  cuda::sync_cluster();
  for (unsigned i = 0; i < 2; ++i) {
    if (threadIdx.x == 32) {
      cuda::wait(empty, i ^ 1U);
      cuda::arrive_and_expect(full, 128);
      for (int half = 0; half < 2; ++half) {
        cuda::copy_to_cluster(cuda::shared_bytes() + 64 * half,
                              reinterpret_cast<const unsigned char*>(a.x + 32 * i + 16 * half), 64,
                              full);
      }
    }
    if (threadIdx.x < 32) {
      cuda::wait(full, i);
      a.y[32 * i + threadIdx.x] = values[threadIdx.x];
      cuda::arrive_at(empty, 0);
    }
  }
}
void wait_kernel(SumArgs) {
  auto* barrier = reinterpret_cast<cuda::Barrier*>(cuda::shared_bytes());
  if (threadIdx.x == 0) cuda::init_barrier(barrier, 2);
  cuda::sync_threads();
  if (threadIdx.x == 32) cuda::arrive(barrier);
  cuda::wait(barrier, 0);
}

TEST(Simt, threads_wait_at_mbarriers_for_threads_and_bytes) {
  std::vector<float> x(64);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  for (const Schedule s : {Schedule::forward, Schedule::backward}) {
    simt::set_schedule(s);
    std::vector<float> y(64);
    cuda::start<SumArgs, copy_kernel>("copy", {1}, 64, 256, nullptr, {x.data(), y.data()});
    EXPECT_EQ(y, x);
  }
  const auto run = [] { cuda::start<SumArgs, wait_kernel>("wait", {1}, 64, 64, nullptr, {}); };
  EXPECT_DEATH(run(), "nobody is left who would arrive");
}

struct MmaArgs {
  const float* a;  // [16, 16 or 32]
  const float* b;  // [16 or 32, 8]
  float* c;        // [16, 8]
};

// The operands as PTX describes them: lane 4 g + q.
template <class T>
void mma_kernel(MmaArgs m) {
  const int g = cuda::lane_index() / 4;
  const int q = cuda::lane_index() % 4;
  const auto a = [&](int row, int k) { return T::pack(m.a[row * 16 + k], m.a[row * 16 + k + 1]); };
  const auto b = [&](int k) { return T::pack(m.b[k * 8 + g], m.b[(k + 1) * 8 + g]); };
  cuda::Float4 c{};
  cuda::mma<T>(c, {a(g, 2 * q), a(g + 8, 2 * q), a(g, 2 * q + 8), a(g + 8, 2 * q + 8)}, b(2 * q),
               b(2 * q + 8));
  for (int i = 0; i < 4; ++i) m.c[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = c.v[i];
}

void mma_s8_kernel(MmaArgs m) {
  const int g = cuda::lane_index() / 4;
  const int q = cuda::lane_index() % 4;
  const auto word = [](auto&& at) {
    uint32_t w = 0;
    for (int i = 0; i < 4; ++i)
      w |= static_cast<uint32_t>(static_cast<uint8_t>(static_cast<int>(at(i)))) << (8 * i);
    return w;
  };
  const auto a = [&](int row, int k) { return word([&](int i) { return m.a[row * 32 + k + i]; }); };
  const auto b = [&](int k) { return word([&](int i) { return m.b[(k + i) * 8 + g]; }); };
  cuda::Int4 c{};
  cuda::mma_s8(c, {a(g, 4 * q), a(g + 8, 4 * q), a(g, 4 * q + 16), a(g + 8, 4 * q + 16)}, b(4 * q),
               b(4 * q + 16));
  for (int i = 0; i < 4; ++i) {
    m.c[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = static_cast<float>(c.v[i]);
  }
}

TEST(Simt, mma_multiplies_matrices_whose_elements_lie_as_ptx_says) {
  enum class Kind { bf16, f16, s8 };
  for (const Kind kind : {Kind::bf16, Kind::f16, Kind::s8}) {
    const int k = kind == Kind::s8 ? 32 : 16;
    std::vector<float> a(static_cast<size_t>(16 * k)), b(static_cast<size_t>(k * 8)), c(16 * 8);
    for (size_t i = 0; i < a.size(); ++i) a[i] = static_cast<float>(i * 7 % 11) - 5;
    for (size_t i = 0; i < b.size(); ++i) b[i] = static_cast<float>(i * 5 % 13) - 6;
    const MmaArgs args{a.data(), b.data(), c.data()};
    if (kind == Kind::bf16) {
      cuda::start<MmaArgs, mma_kernel<cuda::Bf16>>("mma", {1}, 32, 0, nullptr, args);
    } else if (kind == Kind::f16) {
      cuda::start<MmaArgs, mma_kernel<cuda::F16>>("mma", {1}, 32, 0, nullptr, args);
    } else {
      cuda::start<MmaArgs, mma_s8_kernel>("mma", {1}, 32, 0, nullptr, args);
    }
    for (int row = 0; row < 16; ++row) {
      for (int column = 0; column < 8; ++column) {
        float expected = 0;
        for (int i = 0; i < k; ++i) {
          expected += a[static_cast<size_t>(row * k + i)] * b[static_cast<size_t>(i * 8 + column)];
        }
        EXPECT_EQ(c[static_cast<size_t>(row * 8 + column)], expected) << row << " " << column;
      }
    }
  }
}

// Each (row, k) has a place of its own, and the places fill a chunk.
TEST(Layout, places_are_a_permutation) {
  std::set<int> bf16, fp8, s8, s4, a;
  for (int k = 0; k < cuda::kChunk; ++k) {
    for (int row = 0; row < cuda::kRowBlock; ++row) {
      bf16.insert(cuda::place_of(row, k));
      fp8.insert(cuda::place_of_fp8(row, k));
      s8.insert(cuda::place_of_s8(row, k));
      s4.insert(2 * cuda::byte_of_s4(row, k) + row / 8);
    }
    for (int rank = 0; rank < cuda::kRankBlock; ++rank) a.insert(cuda::place_in_a(rank, k));
  }
  for (const auto* places : {&bf16, &fp8, &s8, &s4}) {
    EXPECT_EQ(places->size(), size_t{cuda::kChunkValues});
    EXPECT_EQ(*places->rbegin(), cuda::kChunkValues - 1);
  }
  EXPECT_EQ(a.size(), size_t{cuda::kRankBlock * cuda::kChunk});
  EXPECT_EQ(*a.rbegin(), cuda::kRankBlock * cuda::kChunk - 1);
}

}  // namespace
}  // namespace lorry::test
