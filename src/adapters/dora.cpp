#include "adapters/dora.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace lorry {

namespace {

constexpr int64_t kChunkRows = 64;

// v += the sum over k of c[k] * right[k], by tiles that stay in registers.
void add_rows(std::vector<double>& v, const std::vector<double>& c,
              const std::vector<double>& right) {
  constexpr size_t kTile = 16;
  const size_t n = v.size();
  size_t i = 0;
  for (; i + kTile <= n; i += kTile) {
    std::array<double, kTile> sum;
    std::copy_n(v.data() + i, kTile, sum.data());
    const double* r = right.data() + i;
    for (size_t k = 0; k < c.size(); ++k, r += n) {
      for (size_t j = 0; j < kTile; ++j) sum[j] += c[k] * r[j];
    }
    std::copy_n(sum.data(), kTile, v.data() + i);
  }
  for (; i < n; ++i) {
    for (size_t k = 0; k < c.size(); ++k) v[i] += c[k] * right[k * n + i];
  }
}

// Calls f(row, v) with each row of W + scale * left * right.
template <class F>
void each_row(const DoraMatrix& m, F&& f) {
  const auto cols = static_cast<size_t>(m.cols);
  const auto rank = static_cast<size_t>(m.right.rows());
  std::vector<double> right(rank * cols), v(cols), c(rank);
  for (size_t k = 0; k < rank; ++k) {
    const float* from = m.right.row<const float>(static_cast<int64_t>(k));
    std::copy(from, from + cols, right.data() + k * cols);
  }
  std::vector<float> chunk(static_cast<size_t>(kChunkRows) * cols);
  for (int64_t first = 0; first < m.rows; first += kChunkRows) {
    const int64_t n = std::min(kChunkRows, m.rows - first);
    const Tensor w = view(chunk.data(), Dtype::f32, {n, m.cols});
    m.base(first, w);
    for (int64_t r = 0; r < n; ++r) {
      std::copy(w.row<const float>(r), w.row<const float>(r) + cols, v.data());
      const float* left = m.left.row<const float>(first + r);
      for (size_t k = 0; k < rank; ++k) c[k] = double{m.scale} * double{left[k]};
      add_rows(v, c, right);
      f(static_cast<size_t>(first + r), v);
    }
  }
}

}  // namespace

std::vector<double> row_norms(const DoraMatrix& m) {
  std::vector<double> norms(static_cast<size_t>(m.rows));
  each_row(m, [&](size_t row, const std::vector<double>& v) {
    double sum = 0;
    for (const double x : v) sum += x * x;
    norms[row] = std::sqrt(sum);
  });
  return norms;
}

std::vector<double> column_norms(const DoraMatrix& m) {
  std::vector<double> norms(static_cast<size_t>(m.cols));
  each_row(m, [&](size_t, const std::vector<double>& v) {
    for (size_t i = 0; i < v.size(); ++i) norms[i] += v[i] * v[i];
  });
  for (double& x : norms) x = std::sqrt(x);
  return norms;
}

}  // namespace lorry
