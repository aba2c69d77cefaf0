#include "weights/quant_matrix.h"

#include <array>
#include <bit>
#include <limits>

#include "base/error.h"

namespace lorry {

namespace {

using Kind = QuantScheme::Kind;

// OCP 8-bit floating point, E4M3: exponent bias 7, no infinities.
constexpr float from_e4m3(uint32_t x) {
  const uint32_t exponent = x >> 3U & 15U;
  const uint32_t mantissa = x & 7U;
  if ((x & 127U) == 127U) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0
                              ? static_cast<float>(mantissa) * 0x1p-9F
                              : std::bit_cast<float>((exponent + 120U) << 23U | mantissa << 20U);
  return x < 128 ? magnitude : -magnitude;
}

constexpr std::array<float, 256> kE4m3 = [] {
  std::array<float, 256> values{};
  for (uint32_t i = 0; i < 256; ++i) values[i] = from_e4m3(i);
  return values;
}();

}  // namespace

void dequantise(const Tensor& dst, const QuantMatrix& m, int64_t first) {
  const int64_t in = m.q.shape[1];
  LORRY_CHECK(dst.dtype == Dtype::f32 && dst.cols() == in && first + dst.rows() <= m.q.shape[0]);
  const int64_t group = m.group == 0 ? in : m.group;
  const int middle = m.kind == Kind::int4 ? 8 : 128;
  const auto* order = m.order ? m.order.row<int32_t>(0) : nullptr;
  for (int64_t r = 0; r < dst.rows(); ++r) {
    const auto* q = m.q.row<uint8_t>(first + r);
    const auto* scale = m.scale.row<float>(first + r);
    const auto* zero = m.zero ? m.zero.row<uint8_t>(first + r) : nullptr;
    auto* to = dst.row<float>(r);
    for (int64_t k = 0; k < in; ++k) {
      const int64_t g = k / group;
      const float value = m.kind == Kind::fp8
                              ? kE4m3[q[k]]
                              : static_cast<float>(q[k] - (zero != nullptr ? zero[g] : middle));
      to[order != nullptr ? order[k] : k] = scale[g] * value;
    }
  }
}

}  // namespace lorry
