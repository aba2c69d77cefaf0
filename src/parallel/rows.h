// Rows of f32 in and out of dense memory: what every transport does around its own work.
#pragma once
#include <algorithm>
#include <cstring>

#include "lorry/tensor.h"

namespace lorry {

inline void copy_to(std::byte* dense, const Tensor& x) {
  const auto bytes = static_cast<size_t>(x.cols()) * sizeof(float);
  for (int64_t r = 0; r < x.rows(); ++r) {
    std::memcpy(dense + static_cast<size_t>(r) * bytes, x.row<float>(r), bytes);
  }
}

inline void copy_to(const Tensor& y, const Tensor& x) {
  for (int64_t r = 0; r < x.rows(); ++r) std::copy_n(x.row<float>(r), x.cols(), y.row<float>(r));
}

// y += x, in steps that the compiler makes vectors of.
inline void add(float* __restrict y, const float* __restrict x, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) y[i + j] += x[i + j];
  }
  for (; i < n; ++i) y[i] += x[i];
}

// y = or += dense.
inline void add_from(const Tensor& y, const std::byte* dense, bool first) {
  const int64_t n = y.cols();
  const auto* from = reinterpret_cast<const float*>(dense);
  for (int64_t r = 0; r < y.rows(); ++r, from += n) {
    if (first) {
      std::copy_n(from, n, y.row<float>(r));
    } else {
      add(y.row<float>(r), from, n);
    }
  }
}

// The step r of a sum in the order of the ranks, r = 0, 1 ..., on the rank `own`, whose y begins as
// what it adds. The first two values commute: ranks 0 and 1 keep y and add the other one.
inline void add_in_order(const Tensor& y, const std::byte* dense, int r, int own) {
  if (own > 1 || r != own) add_from(y, dense, own > 1 && r == 0);
}

// Calls f with parts of x that have at most max_bytes: rows, or where one is longer, parts of it.
template <class F>
void each_part(const Tensor& x, size_t max_bytes, F&& f) {
  const auto most = static_cast<int64_t>(max_bytes / sizeof(float));
  const int64_t width = std::min(x.cols(), most);
  const int64_t step = std::max<int64_t>(1, most / std::max<int64_t>(1, width));
  for (int64_t c = 0; c < x.cols(); c += width) {
    const Tensor cols = columns(x, c, std::min(width, x.cols() - c));
    for (int64_t r = 0; r < x.rows(); r += step) f(rows(cols, r, std::min(step, x.rows() - r)));
  }
}

}  // namespace lorry
