// What the tests of the operations share: tensors with their memory, random values, and running a
// call with every variant of the backend and several numbers of threads, whose results must be
// equal.
#pragma once
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "base/fake_nodes.h"
#include "base/float16.h"
#include "base/memory.h"
#include "base/thread_pool.h"
#include "ops/ops.h"

namespace lorry::test {

using Bytes = std::vector<std::byte>;

// A matrix with its memory; `extra` elements after each row are NaN (or -1 for integers), so that
// a kernel that reads too far is found out.
class Matrix {
 public:
  Matrix(Dtype dtype, int64_t rows, int64_t cols, int64_t extra = 0)
      : buffer_(static_cast<size_t>((rows * (cols + extra) + 64) * size_of(dtype))),
        tensor_(view(buffer_.data(), dtype, {rows, cols})) {
    std::memset(buffer_.data(), 0xff, buffer_.size());
    tensor_.pitch = cols + extra;
  }
  Tensor operator()() const { return tensor_; }
  std::byte* data() const { return tensor_.data; }

 private:
  Buffer buffer_;
  Tensor tensor_;
};

inline double get(const Tensor& t, int64_t r, int64_t c) {
  switch (t.dtype) {
    case Dtype::f32:
      return double{t.row<const float>(r)[c]};
    case Dtype::bf16:
      return double{to_float(t.row<const bf16>(r)[c])};
    case Dtype::f16:
      return double{to_float(t.row<const f16>(r)[c])};
    default:
      return double{static_cast<double>(t.row<const int32_t>(r)[c])};
  }
}

inline void set(const Tensor& t, int64_t r, int64_t c, double x) {
  if (t.dtype == Dtype::f32) {
    t.row<float>(r)[c] = static_cast<float>(x);
  } else if (t.dtype == Dtype::bf16) {
    t.row<bf16>(r)[c] = to_bf16(static_cast<float>(x));
  } else if (t.dtype == Dtype::f16) {
    t.row<f16>(r)[c] = to_f16(static_cast<float>(x));
  } else {
    t.row<int32_t>(r)[c] = static_cast<int32_t>(x);
  }
}

inline constexpr std::array kActs{Dtype::bf16, Dtype::f16, Dtype::f32};

// A bound for the relative error of a number that is stored as act; f16: one that is not denormal.
inline double rounding(Dtype act) {
  return act == Dtype::bf16 ? 0x1p-8 : act == Dtype::f16 ? 0x1p-11 : 0x1p-24;
}

// What x becomes when it is stored as act.
inline double rounded(Dtype act, double x) {
  const auto f = static_cast<float>(x);
  return double{act == Dtype::bf16  ? to_float(to_bf16(f))
                : act == Dtype::f16 ? to_float(to_f16(f))
                                    : f};
}

inline void fill(const Tensor& t, unsigned seed, double scale = 1.0) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.0, scale);
  for (int64_t r = 0; r < t.rows(); ++r) {
    for (int64_t c = 0; c < t.cols(); ++c) set(t, r, c, normal(random));
  }
}

inline Matrix random_matrix(Dtype dtype, int64_t rows, int64_t cols, unsigned seed,
                            double scale = 1.0) {
  Matrix m(dtype, rows, cols, 3);
  fill(m(), seed, scale);
  return m;
}

// Where row r has its largest value, the first on ties; -1 where one is NaN or +inf.
inline int32_t place_of_best(const Tensor& scores, int64_t r) {
  int32_t best = -1;
  for (int32_t c = 0; c < scores.cols(); ++c) {
    const double x = get(scores, r, c);
    if (std::isnan(x) || x == HUGE_VAL) return -1;
    if (x > (best < 0 ? -HUGE_VAL : get(scores, r, best))) best = c;
  }
  return best;
}

// The rows' bytes without what lies between them.
inline Bytes bytes_of(const Tensor& t) {
  Bytes all;
  for (int64_t r = 0; r < t.rows(); ++r) {
    const std::byte* row = t.data + r * t.pitch * size_of(t.dtype);
    all.insert(all.end(), row, row + t.cols() * size_of(t.dtype));
  }
  return all;
}

inline void append(Bytes& all, const Bytes& more) {
  all.insert(all.end(), more.begin(), more.end());
}

// A way to run the operations: an instruction set of the CPU (cpu_variants.cpp), or an order of the
// threads of a CUDA kernel (cuda/simt_variants.cpp). The program has one of these files.
struct Variant {
  std::string name;
  bool portable = true;  // has the bits of every other portable variant
  bool slow = false;
  int number = 0;
};
std::vector<Variant> variants();  // the slowest first
// The one that is used unless another is asked for.
Variant best_variant();
Variant best_portable_variant();
std::unique_ptr<Ops> checked_ops(Dtype act, ThreadPool& pool, const Variant& v);
inline std::unique_ptr<Ops> checked_ops(Dtype act, ThreadPool& pool) {
  return checked_ops(act, pool, best_variant());
}

// Calls f(ops), which returns what it computed as bytes, with every portable variant on two threads
// and with the best one on one, and on three of two NUMA nodes: the bytes must be the same.
// `exact`: what is summed is whole numbers, so that all variants have the same bits. Returns them.
template <class F>
Bytes same_everywhere(Dtype act, F&& f, bool exact = false) {
  Bytes first;
  ThreadPool two(2);
  for (const Variant& v : variants()) {
    if (!v.portable && !exact && act == Dtype::bf16) continue;
    const Bytes bytes = f(*checked_ops(act, two, v));
    if (v.number == variants().front().number) first = bytes;
    EXPECT_TRUE(bytes == first) << v.name << " differs from " << variants().front().name;
  }
  const auto differs = [&](ThreadPool& pool) {
    return f(*checked_ops(act, pool, exact ? best_variant() : best_portable_variant())) != first;
  };
  ThreadPool one(1), of_two_nodes(3, fake_nodes(2));
  EXPECT_FALSE(differs(one)) << "one thread differs";
  EXPECT_FALSE(differs(of_two_nodes)) << "three threads on two NUMA nodes differ";
  return first;
}

// A packed weight with its memory, and what was packed, rounded to act.
class PackedWeight {
 public:
  PackedWeight(Ops& ops, const std::vector<Tensor>& groups, int64_t out, int64_t in)
      : weight_(ops.weight_layout(static_cast<int64_t>(groups.size()), out, in)),
        buffer_(static_cast<size_t>(weight_.groups * weight_.group_bytes)) {
    std::memset(buffer_.data(), 0xff, buffer_.size());
    weight_.data = buffer_.data();
    for (size_t g = 0; g < groups.size(); ++g) {
      // In two pieces that do not end with a panel.
      const int64_t first = out / 3;
      ops.pack(weight_, static_cast<int64_t>(g), 0, rows(groups[g], 0, first));
      ops.pack(weight_, static_cast<int64_t>(g), first, rows(groups[g], first, out - first));
    }
  }
  const Weight& operator()() const { return weight_; }

 private:
  Weight weight_;
  Buffer buffer_;
};

// linear() with just as much scratch as it asks for, at an odd place, and a guard behind it.
inline void run_linear(Ops& ops, const Tensor& y, const Tensor& x, const Weight& w,
                       const std::vector<int32_t>& begin) {
  const auto size = static_cast<int64_t>(ops.linear_scratch_bytes(x.rows(), w.in));
  Bytes memory(static_cast<size_t>(size) + 128, std::byte{0xff});
  ops.linear(y, x, w, {begin}, view(memory.data() + 4, Dtype::u8, {size}));
  for (auto i = static_cast<size_t>(size) + 4; i < memory.size(); ++i) {
    ASSERT_EQ(memory[i], std::byte{0xff}) << i - static_cast<size_t>(size);
  }
}

}  // namespace lorry::test
