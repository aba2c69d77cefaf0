#include "models/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lorry {

namespace {

constexpr double kPi = std::numbers::pi;
constexpr size_t kKept = 8192;  // positions

std::vector<double> plain(double theta, int64_t dim) {
  std::vector<double> inv(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < inv.size(); ++i) {
    inv[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  }
  return inv;
}

// NTK-aware base for the current length (at least the original one).
double dynamic_theta(const RopeSpec& r, int64_t dim, int64_t length) {
  const auto original = static_cast<double>(r.original_positions);
  const double n = std::max(static_cast<double>(length), original);
  const auto d = static_cast<double>(dim);
  return r.theta * std::pow(r.factor * n / original - (r.factor - 1), d / (d - 2));
}

void scale_llama3(std::vector<double>& inv, const RopeSpec& r) {
  for (double& f : inv) {
    const double turns = static_cast<double>(r.original_positions) * f / (2 * kPi);
    const double smooth = std::clamp(
        (turns - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor), 0.0, 1.0);
    f *= (1 - smooth) / r.factor + smooth;
  }
}

void scale_yarn(std::vector<double>& inv, const RopeSpec& r, int64_t dim) {
  const auto d = static_cast<double>(dim);
  // The dimension whose wave makes `turns` turns over the original length.
  const auto edge = [&](double turns) {
    return d * std::log(static_cast<double>(r.original_positions) / (turns * 2 * kPi)) /
           (2 * std::log(r.theta));
  };
  double low = edge(r.beta_fast);
  double high = edge(r.beta_slow);
  if (r.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, d - 1);
  const double width = high - low == 0 ? 0.001 : high - low;
  for (size_t i = 0; i < inv.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / width, 0.0, 1.0);
    inv[i] = inv[i] / r.factor * ramp + inv[i] * (1 - ramp);
  }
}

void scale_longrope(std::vector<double>& inv, const RopeSpec& r, int64_t length) {
  const auto& factor = length > r.original_positions ? r.long_factor : r.short_factor;
  for (size_t i = 0; i < inv.size(); ++i) inv[i] /= factor[i];
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeSpec& r, int64_t dim, int64_t length) {
  using Kind = RopeSpec::Kind;
  std::vector<double> inv =
      plain(r.kind == Kind::dynamic ? dynamic_theta(r, dim, length) : r.theta, dim);
  if (r.kind == Kind::linear) {
    for (double& f : inv) f /= r.factor;
  } else if (r.kind == Kind::llama3) {
    scale_llama3(inv, r);
  } else if (r.kind == Kind::yarn) {
    scale_yarn(inv, r, dim);
  } else if (r.kind == Kind::longrope) {
    scale_longrope(inv, r, length);
  }
  return {inv.begin(), inv.end()};
}

RopeTable::RopeTable(const RopeSpec& rope, int64_t head_dim)
    : rope_(rope),
      head_dim_(head_dim),
      frequencies_(inverse_frequencies(rope, head_dim, rope.original_positions)),
      kept_(2 * kKept * frequencies_.size()),
      known_(kKept) {}

void RopeTable::compute(float* cos, float* sin, int32_t position,
                        const std::vector<float>& inv) const {
  const auto scale = static_cast<float>(rope_.attention_factor);
  for (size_t i = 0; i < inv.size(); ++i) {
    const float angle = static_cast<float>(position) * inv[i];
    cos[i] = std::cos(angle) * scale;
    sin[i] = std::sin(angle) * scale;
  }
}

const float* RopeTable::kept(int32_t position) {
  const auto at = static_cast<size_t>(position);
  float* row = kept_.data() + 2 * at * frequencies_.size();
  if (!known_[at]) compute(row, row + frequencies_.size(), position, frequencies_);
  known_[at] = true;
  return row;
}

void RopeTable::fill(Tensor cos, Tensor sin, std::span<const int32_t> positions,
                     std::span<const int32_t> lengths) {
  std::vector<float> longer;  // frequencies of `longer_length`
  int64_t longer_length = -1;
  for (size_t t = 0; t < positions.size(); ++t) {
    float* c = cos.row<float>(static_cast<int64_t>(t));
    float* s = sin.row<float>(static_cast<int64_t>(t));
    const size_t n = frequencies_.size();
    const int32_t position = positions[t];
    const bool is_long = rope_.depends_on_length() && lengths[t] > rope_.original_positions;
    if (is_long && lengths[t] != longer_length) {
      longer_length = lengths[t];
      longer = inverse_frequencies(rope_, head_dim_, longer_length);
    }
    if (is_long || position < 0 || static_cast<size_t>(position) >= kKept) {
      compute(c, s, position, is_long ? longer : frequencies_);
      continue;
    }
    const float* row = kept(position);
    std::copy(row, row + n, c);
    std::copy(row + n, row + 2 * n, s);
  }
}

}  // namespace lorry
