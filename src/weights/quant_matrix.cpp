#include "weights/quant_matrix.h"

#include <array>

#include "base/error.h"
#include "base/float8.h"

namespace lorry {

namespace {

using Kind = QuantScheme::Kind;

constexpr std::array<float, 256> kE4m3 = [] {
  std::array<float, 256> values{};
  for (size_t i = 0; i < 256; ++i) values[i] = from_e4m3(static_cast<uint8_t>(i));
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
