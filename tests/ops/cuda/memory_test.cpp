// Where the CUDA backend's tensors are: on the device as in the processor's memory, the same bits.
#include "ops/cuda/memory.h"

#include <numeric>

#include <gtest/gtest.h>

#include "ops/cuda/cuda_ops.h"
#include "ops/support.h"

namespace lorry::test {
namespace {

// A copy of t on the device.
class OnDevice {
 public:
  OnDevice(DeviceMemory& memory, const Tensor& t)
      : memory_(memory),
        bytes_(static_cast<size_t>(t.rows() * t.pitch * size_of(t.dtype))),
        buffer_(bytes_, &memory),
        tensor_(t) {
    memory.write(buffer_.data(), t.data, bytes_);
    tensor_.data = buffer_.data();
  }
  Tensor operator()() const { return tensor_; }
  void fetch(const Tensor& to) const { memory_.read(to.data, tensor_.data, bytes_); }

 private:
  DeviceMemory& memory_;
  size_t bytes_;
  Buffer buffer_;
  Tensor tensor_;
};

TEST(DeviceMemory, knows_its_own) {
  cuda::CudaMemory memory;
  int other = 0;
  const Buffer a(100, &memory);
  {
    const Buffer b(1, &memory);
    EXPECT_TRUE(memory.contains(b.data()));
    EXPECT_FALSE(memory.contains(b.data() + 1));
  }
  EXPECT_TRUE(memory.contains(a.data() + 99));
  EXPECT_FALSE(memory.contains(a.data() + 100));
  EXPECT_FALSE(memory.contains(&other));
  EXPECT_FALSE(memory.contains(nullptr));
}

// As many as fill several row blocks; mean and variance are those of what unpack gives.
TEST(DeviceMemory, random_weights_have_the_variance_that_is_asked_for) {
  using Kind = WeightFormat::Kind;
  ThreadPool pool(1);
  for (const Dtype act : kActs) {
    const auto ops = make_cuda_ops(act, pool);
    for (const WeightFormat& format :
         {WeightFormat{}, WeightFormat{Kind::int8, 0, false}, WeightFormat{Kind::int4, 128, false},
          WeightFormat{Kind::fp8, 0, false}}) {
      SCOPED_TRACE(to_string(act) + std::string(" ") +
                   std::to_string(static_cast<int>(format.kind)));
      Weight w = ops->weight_layout(2, 80, 256, format);
      const auto bytes = static_cast<size_t>(w.groups * w.group_bytes);
      const Buffer memory(bytes, ops->memory());
      w.data = memory.data();
      std::vector<std::byte> first(bytes), second(bytes);
      ASSERT_TRUE(ops->randomise(w, 1));
      ops->memory()->read(first.data(), w.data, bytes);
      ASSERT_TRUE(ops->randomise(w, 2));
      ops->memory()->read(second.data(), w.data, bytes);
      EXPECT_NE(first, second);
      const Matrix y(Dtype::f32, 80, 256);
      double sum = 0;
      double squares = 0;
      for (int64_t g = 0; g < 2; ++g) {
        ops->unpack(y(), w, g, 0);
        for (int64_t r = 0; r < 80; ++r) {
          for (int64_t k = 0; k < 256; ++k) {
            sum += get(y(), r, k);
            squares += get(y(), r, k) * get(y(), r, k);
          }
        }
      }
      constexpr double kCount = 2 * 80 * 256;
      EXPECT_NEAR(sum / kCount, format.kind == Kind::int4 ? -0.5 / 4.637 / 16 : 0, 0.002);
      EXPECT_NEAR(squares / kCount * 256, 1, 0.05);
    }
  }
}

TEST(DeviceMemory, moves_ranges_that_overlap) {
  cuda::CudaMemory memory;
  constexpr size_t kSize = 5000;
  const Buffer block(kSize, &memory);
  std::vector<std::byte> values(kSize), got(kSize);
  for (size_t i = 0; i < kSize; ++i) values[i] = static_cast<std::byte>(i * 7 % 251);
  struct Move {
    size_t from, to, bytes;
  };
  for (const Move& m : {Move{100, 0, 4900}, Move{0, 100, 4900}, Move{0, 2500, 2500},
                        Move{3000, 1, 2000}, Move{1, 0, 4999}, Move{7, 7, 100}}) {
    memory.write(block.data(), values.data(), kSize);
    memory.move(block.data() + m.to, block.data() + m.from, m.bytes);
    memory.read(got.data(), block.data(), kSize);
    std::vector<std::byte> expected = values;
    std::memmove(expected.data() + m.to, expected.data() + m.from, m.bytes);
    EXPECT_TRUE(got == expected) << m.from << " to " << m.to;
  }
}

TEST(DeviceMemory, clears_rows_and_not_what_lies_between) {
  cuda::CudaMemory memory;
  const Buffer block(100, &memory);
  std::vector<std::byte> values(100, std::byte{5});
  memory.write(block.data(), values.data(), 100);
  memory.clear(block.data() + 10, 20, 3, 2);
  memory.read(values.data(), block.data(), 100);
  for (size_t i = 0; i < 100; ++i) {
    const bool cleared = (i >= 10 && i < 13) || (i >= 30 && i < 33);
    EXPECT_EQ(values[i], cleared ? std::byte{0} : std::byte{5}) << i;
  }
}

TEST(CudaOps, tensors_on_the_device_give_the_bits_of_those_that_are_not) {
  ThreadPool pool(1);
  const auto ops = make_cuda_ops(Dtype::bf16, pool);
  DeviceMemory& memory = *ops->memory();
  const Matrix x = random_matrix(Dtype::bf16, 9, 70, 1);
  const Matrix w = random_matrix(Dtype::f32, 100, 70, 2);
  for (const WeightFormat& format :
       {WeightFormat{}, WeightFormat{WeightFormat::Kind::int4, 32, false}}) {
    Weight here = ops->weight_layout(1, 100, 70, format);
    Weight there = here;
    const auto bytes = static_cast<size_t>(here.group_bytes);
    const Buffer memory_here(bytes);
    const Buffer memory_there(bytes, &memory);
    here.data = memory_here.data();
    there.data = memory_there.data();
    // In two pieces, of which the second reads back what the first left in a row block.
    for (Weight* each : {&here, &there}) {
      ops->pack(*each, 0, 0, rows(w(), 0, 37));
      ops->pack(*each, 0, 37, rows(w(), 37, 63));
    }
    const auto scratch_bytes = static_cast<int64_t>(ops->linear_scratch_bytes(9, 70));
    const Matrix scratch(Dtype::u8, 1, scratch_bytes);
    const OnDevice scratch_there(memory, scratch());
    const std::vector<int32_t> begin{0, 9};
    const Matrix y(Dtype::f32, 9, 100), got(Dtype::f32, 9, 100);
    ops->linear(y(), x(), here, {begin}, scratch());
    const OnDevice y_there(memory, got());
    ops->linear(y_there(), OnDevice(memory, x())(), there, {begin}, scratch_there());
    y_there.fetch(got());
    EXPECT_EQ(bytes_of(y()), bytes_of(got()));
    const Matrix back(Dtype::f32, 100, 70), back_there(Dtype::f32, 100, 70);
    ops->unpack(back(), here, 0, 0);
    ops->unpack(back_there(), there, 0, 0);
    EXPECT_EQ(bytes_of(back()), bytes_of(back_there()));
  }
}

// With room for the results of units each is a warp's of its own; without it a warp takes them all.
TEST(CudaAttention, by_units_or_one_after_the_other_has_the_same_bits) {
  AttentionSpec spec{6, 2, 40, 0};
  ThreadPool pool(1);
  const auto ops = make_cuda_ops(Dtype::bf16, pool);
  constexpr int32_t kLength = 300, kBlocks = 19;
  for (const int32_t window : {0, 90}) {
    spec.window = window;
    KvLayer kv{ops->kv_layout(kBlocks, spec), ops->kv_layout(kBlocks, spec)};
    const auto bytes = static_cast<size_t>(kv.k.shape.size() * size_of(kv.k.dtype));
    const Buffer k_memory(bytes, ops->memory()), v_memory(bytes, ops->memory());
    kv.k.data = k_memory.data();
    kv.v.data = v_memory.data();
    const Matrix k = random_matrix(Dtype::f32, kLength, 80, 1);
    const Matrix v = random_matrix(Dtype::f32, kLength, 80, 2);
    std::vector<int32_t> slots(kLength), table(kBlocks);
    std::iota(slots.begin(), slots.end(), 0);
    std::iota(table.begin(), table.end(), 0);
    ops->kv_write(kv, k(), v(), view(slots.data(), Dtype::i32, {kLength}), spec);
    const Matrix q = random_matrix(Dtype::f32, 70, 240, 3);
    const std::vector<int32_t> begin{0, 70}, length{kLength};
    std::vector<Bytes> results;
    for (const auto size :
         {static_cast<int64_t>(ops->attention_scratch_bytes(70, spec)), int64_t{64}}) {
      const Matrix scratch(Dtype::u8, 1, size);
      const Matrix o(Dtype::bf16, 70, 240);
      ops->attention(o(), q(), kv,
                     {begin, length, table, kBlocks, view(scratch.data(), Dtype::u8, {size})},
                     spec);
      results.push_back(bytes_of(o()));
    }
    EXPECT_EQ(results[0], results[1]) << "window " << window;
  }
}

}  // namespace
}  // namespace lorry::test
