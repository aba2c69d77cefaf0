#include "base/memory.h"

#include <algorithm>
#include <cstdint>

#include <gtest/gtest.h>

#include "base/error.h"

namespace lorry {
namespace {

uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

TEST(Buffer, is_zeroed_aligned_and_at_least_as_large_as_asked) {
  for (const size_t bytes : {size_t{1}, size_t{4097}, size_t{3} << 20}) {
    const Buffer buffer(bytes);
    ASSERT_GE(buffer.size(), bytes);
    EXPECT_EQ(address(buffer.data()) % 64, 0U);
    EXPECT_TRUE(std::all_of(buffer.data(), buffer.data() + buffer.size(),
                            [](std::byte b) { return b == std::byte{0}; }));
  }
}

TEST(Buffer, a_large_one_starts_a_huge_page) {
  EXPECT_EQ(address(Buffer(size_t{5} << 20).data()) % (size_t{2} << 20), 0U);
}

TEST(Buffer, moves) {
  Buffer a(100);
  std::byte* p = a.data();
  p[99] = std::byte{7};
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), p);
  Buffer c;
  EXPECT_EQ(c.data(), nullptr);
  c = std::move(b);
  EXPECT_EQ(c.data(), p);
  EXPECT_EQ(c.data()[99], std::byte{7});
}

TEST(Buffer, what_the_system_refuses_is_an_error) {
  for (const size_t bytes : {size_t{1} << 60, SIZE_MAX}) {
    try {
      const Buffer buffer(bytes);
      FAIL();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::over_capacity);
    }
  }
}

TEST(Arena, takes_exactly_what_it_announced) {
  const size_t bytes =
      Arena::tensor_bytes(Dtype::f32, {3, 5}) + Arena::matrix_bytes(Dtype::bf16, 4, 100);
  Arena arena(bytes);
  const Tensor t = arena.tensor(Dtype::f32, {3, 5});
  EXPECT_EQ(t.shape, (Shape{3, 5}));
  EXPECT_EQ(t.pitch, 5);
  EXPECT_EQ(t.dtype, Dtype::f32);
  EXPECT_EQ(address(t.data) % 64, 0U);
  const Tensor m = arena.matrix(Dtype::bf16, 4, 100);
  EXPECT_EQ(address(m.data) % 64, 0U);
  EXPECT_GE(m.data, t.data + 3 * 5 * 4);
  EXPECT_EQ(arena.used(), bytes);
}

TEST(Arena, rows_of_a_matrix_are_aligned_and_spread_over_the_sets_of_the_cache) {
  for (const int64_t cols : {1, 31, 32, 2048, 4096, 8192}) {
    Arena arena(Arena::matrix_bytes(Dtype::bf16, 2, cols));
    const Tensor m = arena.matrix(Dtype::bf16, 2, cols);
    EXPECT_GE(m.pitch, cols);
    EXPECT_EQ(m.pitch * 2 % 64, 0) << cols;
    EXPECT_NE(m.pitch * 2 % 4096, 0) << cols;
  }
}

TEST(ArenaDeathTest, exhaustion_is_a_programmers_error) {
  Arena arena(4096);
  EXPECT_DEATH(arena.tensor(Dtype::f32, {1025}), "arena of 4096 bytes");
}

}  // namespace
}  // namespace lorry
