// Quantised weights for tests: random values with their packed form, and what linear() must make of
// them, in the documented arithmetic, bit for bit.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "ops/support.h"

namespace lorry::test {

using Kind = WeightFormat::Kind;

inline std::string name_of(const WeightFormat& f) {
  const char* kind = f.kind == Kind::int8 ? "int8" : f.kind == Kind::int4 ? "int4" : "fp8";
  return std::string(kind) + (f.group > 0 ? "_g" + std::to_string(f.group) : "") +
         (f.zeros ? "_zeros" : "");
}

inline std::vector<WeightFormat> formats() {
  return {{Kind::int8, 0, false},  {Kind::int8, 0, true},    {Kind::int8, 32, false},
          {Kind::int8, 64, true},  {Kind::int8, 128, false}, {Kind::int4, 0, false},
          {Kind::int4, 0, true},   {Kind::int4, 32, false},  {Kind::int4, 32, true},
          {Kind::int4, 128, true}, {Kind::int4, 128, false}, {Kind::fp8, 0, false}};
}

// e4m3 from its definition.
inline float e4m3(uint8_t x) {
  const int exponent = x >> 3 & 15;
  const int mantissa = x & 7;
  if ((x & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const double value =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>((x & 0x80) != 0 ? -value : value);
}

// One group: q, scale, zero as QuantRows.
struct QuantValues {
  QuantValues(const WeightFormat& f, int64_t out, int64_t in, unsigned seed)
      : format(f), out_(out), in_(in) {
    std::mt19937 random(seed);
    const int64_t scales = f.scales(in);
    const unsigned values = f.kind == Kind::int4 ? 16 : 256;
    for (int64_t i = 0; i < out * in; ++i) {
      const auto x = static_cast<uint8_t>(random() % values);
      q.push_back(f.kind == Kind::fp8 && (x & 0x7f) == 0x7f ? uint8_t{1} : x);
    }
    for (int64_t i = 0; i < out * scales; ++i) {
      const double s = std::uniform_real_distribution<double>(-0.02, 0.02)(random);
      const auto wide = static_cast<float>(s);
      scale.push_back(f.group == 0 ? wide : to_float(to_f16(wide)));
      if (f.zeros) zero.push_back(static_cast<uint8_t>(random() % values));
    }
  }
  QuantRows rows_of(int64_t first, int64_t n) const {
    const auto of = [&](const auto& values, Dtype dtype, int64_t cols) {
      auto* data = const_cast<void*>(static_cast<const void*>(values.data()));
      return rows(view(data, dtype, {out_, cols}), first, n);
    };
    const int64_t scales = format.scales(in_);
    return {of(q, Dtype::u8, in_), of(scale, Dtype::f32, scales),
            format.zeros ? of(zero, Dtype::u8, scales) : Tensor{}};
  }
  int64_t out() const { return out_; }
  int64_t scale_at(int64_t o, int64_t k) const {
    return o * format.scales(in_) + (format.group == 0 ? 0 : k / format.group);
  }
  int less_zero(int64_t o, int64_t k) const {
    const int standard = format.kind == Kind::int4 ? 8 : 128;
    const int z = format.zeros ? zero[static_cast<size_t>(scale_at(o, k))] : standard;
    return q[static_cast<size_t>(o * in_ + k)] - z;
  }
  // Packed input k of output o; fp8: without its scale.
  float plain(int64_t o, int64_t k) const {
    if (format.kind == Kind::fp8) return e4m3(q[static_cast<size_t>(o * in_ + k)]);
    return static_cast<float>(less_zero(o, k)) * scale[static_cast<size_t>(scale_at(o, k))];
  }

  WeightFormat format;
  std::vector<uint8_t> q, zero;
  std::vector<float> scale;

 private:
  int64_t out_, in_;
};

// Memory for a weight, with a guard behind it.
class QuantWeight {
 public:
  QuantWeight(const Ops& ops, const WeightFormat& f, int64_t groups, int64_t out, int64_t in)
      : weight_(ops.weight_layout(groups, out, in, f)),
        buffer_(static_cast<size_t>(groups * weight_.group_bytes + 64)) {
    std::memset(buffer_.data(), 0xff, buffer_.size());
    weight_.data = buffer_.data();
  }
  // In two pieces that do not end with a panel.
  void pack(Ops& ops, int64_t group, const QuantValues& v) {
    const int64_t first = v.out() / 3;
    ops.pack(weight_, group, 0, v.rows_of(0, first));
    ops.pack(weight_, group, first, v.rows_of(first, v.out() - first));
  }
  void pack(Ops& ops, int64_t group, const Tensor& w) {
    const int64_t first = w.rows() / 3;
    ops.pack(weight_, group, 0, rows(w, 0, first));
    ops.pack(weight_, group, first, rows(w, first, w.rows() - first));
  }
  Weight& operator()() { return weight_; }
  Bytes bytes() const {
    return {buffer_.data(), buffer_.data() + weight_.groups * weight_.group_bytes};
  }
  bool guarded() const {
    const std::byte* end = buffer_.data() + weight_.groups * weight_.group_bytes;
    return std::all_of(end, end + 64, [](std::byte b) { return b == std::byte{0xff}; });
  }

 private:
  Weight weight_;
  Buffer buffer_;
};

// A row of x (inputs in packed order) as linear quantises it.
struct QuantisedRow {
  explicit QuantisedRow(const std::vector<float>& x) {
    float most = 0;
    for (const float v : x) most = std::max(most, std::abs(v));
    scale = most / 127.0F;
    for (const float v : x) {
      q.push_back(scale == 0 ? 0 : static_cast<int>(std::nearbyint(v * (127.0F / most))));
    }
  }
  float scale;
  std::vector<int> q;
};

inline float expected_integer(const QuantisedRow& x, const QuantValues& w, int64_t o) {
  const auto in = static_cast<int64_t>(x.q.size());
  const int64_t group = w.format.group == 0 ? in : w.format.group;
  float f = 0;
  for (int64_t k = 0; k < in; k += group) {
    int64_t sum = 0;
    for (int64_t i = k; i < std::min(in, k + group); ++i) {
      sum += int64_t{x.q[static_cast<size_t>(i)]} * w.less_zero(o, i);
    }
    f = std::fma(static_cast<float>(sum), w.scale[static_cast<size_t>(w.scale_at(o, k))], f);
  }
  return f * x.scale;
}

// Rows of x in the order of packed inputs.
inline Matrix in_order(const Tensor& x, const std::vector<int32_t>& order) {
  Matrix y(x.dtype, x.rows(), x.cols());
  for (int64_t r = 0; r < x.rows(); ++r) {
    for (int64_t k = 0; k < x.cols(); ++k) {
      set(y(), r, k, get(x, r, order.empty() ? k : order[static_cast<size_t>(k)]));
    }
  }
  return y;
}

// y [T, out] of the rows x, inputs in packed order. Not whole numbers: through a plain weight.
inline Matrix expected_linear(Ops& ops, const Tensor& x, const QuantValues& w) {
  Matrix y(Dtype::f32, x.rows(), w.out());
  if (x.dtype != Dtype::f32 && w.format.kind != Kind::fp8) {
    for (int64_t r = 0; r < x.rows(); ++r) {
      std::vector<float> values;
      for (int64_t k = 0; k < x.cols(); ++k) values.push_back(static_cast<float>(get(x, r, k)));
      const QuantisedRow q(values);
      for (int64_t o = 0; o < w.out(); ++o) y().row<float>(r)[o] = expected_integer(q, w, o);
    }
    return y;
  }
  const Matrix plain(Dtype::f32, w.out(), x.cols());
  for (int64_t o = 0; o < w.out(); ++o) {
    for (int64_t k = 0; k < x.cols(); ++k) plain().row<float>(o)[k] = w.plain(o, k);
  }
  const PackedWeight packed(ops, {plain()}, w.out(), x.cols());
  const std::vector<int32_t> begin{0, static_cast<int32_t>(x.rows())};
  ops.linear(y(), x, packed(), {begin}, {});
  for (int64_t r = 0; r < x.rows() && w.format.kind == Kind::fp8; ++r) {
    for (int64_t o = 0; o < w.out(); ++o) y().row<float>(r)[o] *= w.scale[static_cast<size_t>(o)];
  }
  return y;
}

}  // namespace lorry::test
