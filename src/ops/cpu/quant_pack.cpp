// Quantised weights at load time: rounding floats to them, the panels, and back.
#include <array>
#include <cmath>
#include <cstring>

#include "base/float16.h"
#include "base/float8.h"
#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargestF16 = 65504.0F;

// The values of one output and one scale, padded to whole steps and vectors.
struct Values {
  explicit Values(int64_t n) : q(static_cast<size_t>(round_up(n, 16))) {}
  std::vector<uint8_t> q;
  float scale = 0;
  uint8_t zero = 0;
};

// A scale as the layout stores it; finite ones stay finite.
float stored(const QuantLayout& l, float scale) {
  if (!l.half || std::isnan(scale)) return scale;
  return to_float(to_f16(std::clamp(scale, -kLargestF16, kLargestF16)));
}

// int4: of a few scales around the one that maps the largest magnitude to -8, the one with the
// least squared error.
float fit_int4(const Kernels& kernels, const QuantLayout& l, const float* w, int64_t n,
               float largest) {
  float best = 0;
  float least = std::numeric_limits<float>::infinity();
  for (const float at : {8.0F, 7.0F, 7.25F, 7.5F, 7.75F, 8.25F, 8.5F, 8.75F, 9.0F}) {
    const float scale = stored(l, largest / -at);
    if (scale == 0) continue;
    const float error = kernels.rounding_error(w, n, scale, 8);
    if (error < least) {
      best = scale;
      least = error;
    }
  }
  // Squares that overflow: the first one.
  return best != 0 ? best : stored(l, largest / -8.0F);
}

// v.q, v.scale <- w [n]. A value that is not finite makes the scale NaN.
void fit(Values& v, const Kernels& kernels, const QuantLayout& l, const float* w, int64_t n) {
  std::array<float, 3> range{};
  kernels.weight_range(w, n, range.data());
  const float size = std::max(-range[0], range[1]);
  const bool finite = range[2] == 0;
  v.zero = static_cast<uint8_t>(zero_point(l.kind));
  std::fill(v.q.begin(), v.q.end(), v.zero);
  if (!finite) {
    v.scale = kNaN;
  } else if (l.kind == QuantKind::int4) {
    v.scale = fit_int4(kernels, l, w, n, size == range[1] ? size : -size);
  } else {
    v.scale = stored(l, size / (l.kind == QuantKind::int8 ? 127.0F : 448.0F));
  }
  if (!finite || v.scale == 0) return;
  if (l.kind == QuantKind::fp8) {
    for (int64_t k = 0; k < n; ++k) v.q[static_cast<size_t>(k)] = to_e4m3(w[k] / v.scale);
  } else {
    kernels.round_weights(v.q.data(), w, n, v.scale, l.kind == QuantKind::int8 ? 128 : 8);
    std::fill(v.q.begin() + n, v.q.end(), v.zero);
  }
}

// Column `column` of scale g of a panel.
void put(std::byte* panel, const QuantLayout& l, int64_t g, int64_t column, const Values& v) {
  std::byte* data = panel + group_offset(l, g);
  const int64_t n = group_inputs(l, g);
  const uint8_t* q = v.q.data();
  for (int64_t s = 0; s < steps_of(l, n); ++s, data += step_bytes(l.kind)) {
    std::array<uint8_t, 4> bytes;
    const int64_t width = step_bytes(l.kind) / kPanel;
    if (l.kind == QuantKind::int4) {
      for (size_t j = 0; j < 4; ++j) bytes[j] = static_cast<uint8_t>(q[j] | q[j + 4] << 4);
    } else {
      std::memcpy(bytes.data(), q, static_cast<size_t>(width));
    }
    std::memcpy(data + column * width, bytes.data(), static_cast<size_t>(width));
    q += step_inputs(l.kind);
  }
  if (l.half) {
    reinterpret_cast<f16*>(data)[column] = to_f16(v.scale);
  } else {
    reinterpret_cast<float*>(data)[column] = v.scale;
  }
  if (l.zeros) data[scale_bytes(l) + column] = std::byte{v.zero};
}

// The value of input k as linear() multiplies by it.
float value_at(const std::byte* panel, const QuantLayout& l, int64_t column, int64_t k) {
  const int64_t g = k / l.group;
  const std::byte* data = panel + group_offset(l, g);
  const std::byte* tail = data + data_bytes(l, group_inputs(l, g));
  const float scale = l.half ? to_float(reinterpret_cast<const f16*>(tail)[column])
                             : reinterpret_cast<const float*>(tail)[column];
  const int64_t within = k - g * l.group;
  const int64_t at = within % step_inputs(l.kind);
  const int64_t width = step_bytes(l.kind) / kPanel;
  const auto byte = std::to_integer<uint8_t>(
      data[within / step_inputs(l.kind) * step_bytes(l.kind) + column * width + at % width]);
  if (l.kind == QuantKind::fp8) return from_e4m3(byte) * scale;
  const int q = l.kind == QuantKind::int8 ? byte : byte >> at / width * 4 & 15;
  const int zero =
      l.zeros ? std::to_integer<int>(tail[scale_bytes(l) + column]) : zero_point(l.kind);
  return static_cast<float>(q - zero) * scale;
}

// Row r of src, its inputs in the order of the weight.
void read_row(float* to, Tensor src, int64_t r, const int32_t* order) {
  for (int64_t i = 0; i < src.cols(); ++i) {
    const int64_t k = order == nullptr ? i : order[i];
    to[i] = src.dtype == Dtype::f32    ? src.row<const float>(r)[k]
            : src.dtype == Dtype::bf16 ? to_float(src.row<const bf16>(r)[k])
                                       : to_float(src.row<const f16>(r)[k]);
  }
}

}  // namespace

// Calls f(panel, column, i) for rows first + i of a group, on all threads by panel; the columns
// behind the last output become 0.
template <class F>
void CpuOps::each_packed_row(const Weight& w, int64_t group, int64_t first, int64_t n, F&& f) {
  LORRY_CHECK(first >= 0 && first + n <= w.out && group < w.groups, "rows {} + {} of {}", first, n,
              w.out);
  if (n == 0) return;
  const QuantLayout l = layout_of(w.format, w.in);
  const int64_t first_panel = first / kPanel;
  const int64_t panels = ceil_div(first + n, kPanel) - first_panel;
  parallel(panels, [&](int64_t task, int) {
    const int64_t p = first_panel + task;
    std::byte* panel = w.data + group * w.group_bytes + p * quant_panel_bytes(l);
    const int64_t begin = std::max(first, p * kPanel);
    const int64_t end = std::min(first + n, (p + 1) * kPanel);
    for (int64_t r = begin; r < end; ++r) f(panel, r - p * kPanel, r - first);
    if (end != w.out) return;
    Values none(l.group);
    none.zero = static_cast<uint8_t>(zero_point(l.kind));
    std::fill(none.q.begin(), none.q.end(), none.zero);
    for (int64_t c = end - p * kPanel; c < kPanel; ++c) {
      for (int64_t g = 0; g < scales_of(l); ++g) put(panel, l, g, c, none);
    }
  });
}

void CpuOps::pack_quantised(Weight& w, int64_t group, int64_t first, Tensor src) {
  const QuantLayout l = layout_of(w.format, w.in);
  const int32_t* order = w.order == nullptr ? nullptr : w.order + group * w.in;
  each_packed_row(w, group, first, src.rows(), [&](std::byte* panel, int64_t column, int64_t r) {
    std::vector<float> row(static_cast<size_t>(w.in));
    Values v(l.group);
    read_row(row.data(), src, r, order);
    for (int64_t g = 0; g < scales_of(l); ++g) {
      fit(v, kernels_, l, row.data() + g * l.group, group_inputs(l, g));
      put(panel, l, g, column, v);
    }
  });
}

void CpuOps::pack(Weight& w, int64_t group, int64_t first, const QuantRows& src) {
  const QuantLayout l = layout_of(w.format, w.in);
  each_packed_row(w, group, first, src.q.rows(), [&](std::byte* panel, int64_t column, int64_t r) {
    Values v(l.group);
    for (int64_t g = 0; g < scales_of(l); ++g) {
      const uint8_t* q = src.q.row<const uint8_t>(r) + g * l.group;
      v.scale = src.scale.row<const float>(r)[g];
      v.zero =
          l.zeros ? src.zero.row<const uint8_t>(r)[g] : static_cast<uint8_t>(zero_point(l.kind));
      // Int4's zero point may be 16 (of a checkpoint that stores it less one): no value of q.
      const auto padding = static_cast<uint8_t>(l.kind == QuantKind::int4 ? v.zero & 15 : v.zero);
      std::fill(v.q.begin(), v.q.end(), padding);
      std::copy_n(q, group_inputs(l, g), v.q.begin());
      put(panel, l, g, column, v);
    }
  });
}

void CpuOps::unpack_quantised(Tensor y, const Weight& w, int64_t group, int64_t first) const {
  const FlushDenormals flush;
  const QuantLayout l = layout_of(w.format, w.in);
  const int32_t* order = w.order == nullptr ? nullptr : w.order + group * w.in;
  const std::byte* data = w.data + group * w.group_bytes;
  for (int64_t r = 0; r < y.rows(); ++r) {
    const int64_t row = first + r;
    const std::byte* panel = data + row / kPanel * quant_panel_bytes(l);
    for (int64_t k = 0; k < w.in; ++k) {
      y.row<float>(r)[order == nullptr ? k : order[k]] = value_at(panel, l, row % kPanel, k);
    }
  }
}

}  // namespace lorry::cpu
