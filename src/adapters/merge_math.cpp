#include "adapters/merge_math.h"

#include <algorithm>
#include <cmath>

namespace lorry {

namespace {

int sign_of(float x) { return (x > 0 ? 1 : 0) - (x < 0 ? 1 : 0); }

// Calls f(value, index into out's values) for each element of each term, in the terms' order.
template <class F>
void for_each_value(std::span<const MergeTerm> terms, const ReadTerm& read, const Tensor& out,
                    F&& f) {
  Matrix m;
  for (size_t i = 0; i < terms.size(); ++i) {
    read(i, m);
    for (int64_t r = 0; r < m.rows; ++r) {
      const float* x = m.values.data() + r * m.cols;
      const int64_t at = (terms[i].row + r) * out.pitch + terms[i].col;
      for (int64_t c = 0; c < m.cols; ++c) f(terms[i].weight, x[c], static_cast<size_t>(at + c));
    }
  }
}

}  // namespace

void keep_largest(std::span<float> values, double density) {
  if (density >= 1) return;
  const auto k = static_cast<size_t>(density * static_cast<double>(values.size()));
  if (k == 0) {
    std::fill(values.begin(), values.end(), 0.0F);
    return;
  }
  std::vector<float> sizes(values.size());
  std::transform(values.begin(), values.end(), sizes.begin(), [](float x) { return std::abs(x); });
  const auto kth = sizes.begin() + static_cast<std::ptrdiff_t>(k) - 1;
  std::nth_element(sizes.begin(), kth, sizes.end(), std::greater<>());
  const float smallest = *kth;
  const auto larger =
      std::count_if(values.begin(), values.end(), [&](float x) { return std::abs(x) > smallest; });
  size_t equal = k - static_cast<size_t>(larger);
  for (float& x : values) {
    if (std::abs(x) > smallest) continue;
    if (std::abs(x) == smallest && equal > 0) {
      --equal;
    } else {
      x = 0;
    }
  }
}

uint64_t splitmix64(uint64_t key, uint64_t i) {
  uint64_t z = key + (i + 1) * 0x9E3779B97F4A7C15U;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

void keep_random(std::span<float> values, double density, uint64_t key) {
  if (density >= 1) return;
  const auto divisor = static_cast<float>(density);
  for (size_t i = 0; i < values.size(); ++i) {
    const double uniform = static_cast<double>(splitmix64(key, i) >> 11) * 0x1p-53;
    values[i] = uniform < density ? values[i] / divisor : 0.0F;
  }
}

void weighted_sum(std::span<const MergeTerm> terms, const ReadTerm& read, Tensor out) {
  auto* sum = out.row<float>(0);
  for_each_value(terms, read, out, [&](float w, float x, size_t i) { sum[i] += w * x; });
}

void elected_mean(std::span<const MergeTerm> terms, const ReadTerm& read,
                  MergeSpec::MajoritySign elected_by, Tensor out) {
  const auto n = static_cast<size_t>(out.shape.size());
  const bool by_sum = elected_by == MergeSpec::MajoritySign::total;
  std::vector<float> votes(n);
  for_each_value(terms, read, out, [&](float, float x, size_t i) {
    votes[i] += by_sum ? x : static_cast<float>(sign_of(x));
  });
  std::vector<uint8_t> kept(n);
  auto* sum = out.row<float>(0);
  for_each_value(terms, read, out, [&](float w, float x, size_t i) {
    if (sign_of(x) != (votes[i] >= 0 ? 1 : -1)) return;
    sum[i] += w * x;
    ++kept[i];
  });
  for (size_t i = 0; i < n; ++i) {
    if (kept[i] > 1) sum[i] /= static_cast<float>(kept[i]);
  }
}

}  // namespace lorry
