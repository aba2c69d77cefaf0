// Quantised weights at load time: rounding floats to them, the panels, and back.
#include <array>
#include <cmath>
#include <cstring>

#include "base/float16.h"
#include "base/float8.h"
#include "ops/cpu/backend.h"
#include "ops/cpu/fit.h"

namespace lorry::cpu {

namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kLargestF16 = 65504.0F;

// The outputs of a panel before they are woven into it: of each the values of all its inputs, and
// for each scale the scale and its zero point. Each scale's values are padded to whole steps and
// vectors.
struct PanelValues {
  explicit PanelValues(const QuantLayout& l)
      : group_width(round_up(std::min(l.group, l.in), 16)),
        width(scales_of(l) * group_width),
        q(static_cast<size_t>(kPanel * width)),
        scale(static_cast<size_t>(kPanel * scales_of(l))),
        zero(scale.size()) {}

  uint8_t* values(int64_t column, int64_t g) { return q.data() + column * width + g * group_width; }
  const int64_t group_width, width;
  std::vector<uint8_t> q;
  std::vector<float> scale;
  std::vector<uint8_t> zero;
};

// What stands for inputs that are not there: int4's zero point may be 16 (of a checkpoint that
// stores it less one), which is no value of q.
uint8_t padding_of(const QuantLayout& l, uint8_t zero) {
  return static_cast<uint8_t>(l.kind == QuantKind::int4 ? zero & 15 : zero);
}

// A scale as the layout stores it; finite ones stay finite.
float stored(const QuantLayout& l, float scale) {
  if (!l.half || std::isnan(scale)) return scale;
  return to_float(to_f16(std::clamp(scale, -kLargestF16, kLargestF16)));
}

// int4: of a few scales around the one that maps the largest magnitude to -8, the one with the
// least squared error.
float fit_int4(const Kernels& kernels, const QuantLayout& l, const float* w, int64_t n,
               float largest) {
  constexpr std::array kAt{8.0F, 7.0F, 7.25F, 7.5F, 7.75F, 8.25F, 8.5F, 8.75F, 9.0F};
  std::array<float, kAt.size()> scales, errors;
  int count = 0;
  for (const float at : kAt) {
    const float scale = stored(l, largest / -at);
    if (scale != 0) scales[static_cast<size_t>(count++)] = scale;
  }
  kernels.rounding_errors(w, n, scales.data(), count, errors.data());
  float best = 0;
  float least = std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    if (errors[i] < least) {
      best = scales[i];
      least = errors[i];
    }
  }
  // Squares that overflow: the first one.
  return best != 0 ? best : stored(l, largest / -8.0F);
}

}  // namespace

float fit(uint8_t* q, const Kernels& kernels, const QuantLayout& l, const float* w, int64_t n) {
  std::array<float, 3> range{};
  kernels.weight_range(w, n, range.data());
  const float size = std::max(-range[0], range[1]);
  const bool finite = range[2] == 0;
  float scale = kNaN;
  if (finite && l.kind == QuantKind::int4) {
    scale = fit_int4(kernels, l, w, n, size == range[1] ? size : -size);
  } else if (finite) {
    scale = stored(l, size / (l.kind == QuantKind::int8 ? 127.0F : 448.0F));
  }
  const auto zero = static_cast<uint8_t>(zero_point(l.kind));
  int64_t done = 0;
  if (finite && scale != 0 && l.kind == QuantKind::fp8) {
    for (; done < n; ++done) q[done] = to_e4m3(w[done] / scale);
  } else if (finite && scale != 0) {
    kernels.round_weights(q, w, n, scale, l.kind == QuantKind::int8 ? 128 : 8);
    done = n;
  }
  std::fill(q + done, q + round_up(n, 16), zero);
  return scale;
}

namespace {

// Steps [from, to) of the values of one output, at its place in the first of `to - from` steps.
void put_steps(std::byte* to, QuantKind kind, const uint8_t* q, int64_t n) {
  if (kind == QuantKind::int4) {
    for (int64_t s = 0; s < n; ++s, q += 8, to += 256) {
      std::array<uint32_t, 2> half{};
      std::memcpy(half.data(), q, 8);
      const uint32_t both = half[0] | half[1] << 4;
      std::memcpy(to, &both, 4);
    }
  } else if (kind == QuantKind::int8) {
    for (int64_t s = 0; s < n; ++s, q += 4, to += 256) std::memcpy(to, q, 4);
  } else {
    for (int64_t s = 0; s < n; ++s, q += 2, to += 128) std::memcpy(to, q, 2);
  }
}

// Columns [begin, end) of a panel. Inputs a part at a time, so that each line is written once.
void put(std::byte* panel, const QuantLayout& l, PanelValues& v, int64_t begin, int64_t end) {
  constexpr int64_t kPart = 16;
  const int64_t width = step_bytes(l.kind) / kPanel;
  for (int64_t g = 0; g < scales_of(l); ++g) {
    std::byte* data = panel + group_offset(l, g);
    const int64_t steps = steps_of(l, group_inputs(l, g));
    for (int64_t s = 0; s < steps; s += kPart) {
      for (int64_t c = begin; c < end; ++c) {
        put_steps(data + s * step_bytes(l.kind) + c * width, l.kind,
                  v.values(c, g) + s * step_inputs(l.kind), std::min(kPart, steps - s));
      }
    }
    std::byte* tail = data + steps * step_bytes(l.kind);
    for (int64_t c = begin; c < end; ++c) {
      const auto at = static_cast<size_t>(c * scales_of(l) + g);
      if (l.half) {
        reinterpret_cast<f16*>(tail)[c] = to_f16(v.scale[at]);
      } else {
        reinterpret_cast<float*>(tail)[c] = v.scale[at];
      }
      if (l.zeros) tail[scale_bytes(l) + c] = std::byte{v.zero[at]};
    }
  }
}

// What p says of the panel, from `v`; behind the last output all is 0.
void put_rows(std::byte* panels, const QuantLayout& l, PanelValues& v, const PanelRows& p) {
  int64_t end = p.column + p.n;
  if (p.last) {
    const auto zero = static_cast<uint8_t>(zero_point(l.kind));
    std::fill(v.q.begin() + end * v.width, v.q.end(), zero);
    std::fill(v.scale.begin() + end * scales_of(l), v.scale.end(), 0.0F);
    std::fill(v.zero.begin() + end * scales_of(l), v.zero.end(), zero);
    end = kPanel;
  }
  put(panels + p.panel * quant_panel_bytes(l), l, v, p.column, end);
}

// Of an output of a panel, from what follows the inputs of a scale.
float scale_at(const QuantLayout& l, const std::byte* tail, int64_t column) {
  return l.half ? to_float(reinterpret_cast<const f16*>(tail)[column])
                : reinterpret_cast<const float*>(tail)[column];
}
uint8_t zero_at(const QuantLayout& l, const std::byte* tail, int64_t column) {
  return l.zeros ? std::to_integer<uint8_t>(tail[scale_bytes(l) + column])
                 : static_cast<uint8_t>(zero_point(l.kind));
}

// `n` whole steps of one output, from its place in the first of them: put_steps() back.
void take_steps(uint8_t* q, QuantKind kind, const std::byte* from, int64_t n) {
  if (kind == QuantKind::int4) {
    for (int64_t s = 0; s < n; ++s, q += 8, from += 256) {
      uint32_t both = 0;
      std::memcpy(&both, from, 4);
      const std::array<uint32_t, 2> half{both & 0x0f0f0f0fU, both >> 4 & 0x0f0f0f0fU};
      std::memcpy(q, half.data(), 8);
    }
  } else if (kind == QuantKind::int8) {
    for (int64_t s = 0; s < n; ++s, q += 4, from += 256) std::memcpy(q, from, 4);
  } else {
    for (int64_t s = 0; s < n; ++s, q += 2, from += 128) std::memcpy(q, from, 2);
  }
}

// Outputs of a packed panel from column `column` on, and of their inputs those from `input` on.
struct PackedOutputs {
  const QuantLayout& layout;
  const std::byte* panel;
  int64_t column, input;

  // The scale that a scale of a part's inputs is, and the place of its first input.
  struct Place {
    const std::byte *step, *tail;
    int64_t skipped;  // inputs of the step that the part does not have
  };
  Place place(const QuantLayout& part, int64_t g) const {
    const int64_t k = input + g * part.group;
    const int64_t its = k / layout.group;
    const int64_t within = k - its * layout.group;
    const int64_t step = step_inputs(layout.kind);
    const std::byte* data = panel + group_offset(layout, its);
    return {data + within / step * step_bytes(layout.kind),
            data + data_bytes(layout, group_inputs(layout, its)), within % step};
  }
};

// Column `to` of v <- the first of these outputs.
void take(PanelValues& v, const QuantLayout& l, int64_t to, const PackedOutputs& from) {
  const int64_t width = step_bytes(l.kind) / kPanel;
  const int64_t step = step_inputs(l.kind);
  std::vector<uint8_t> q(static_cast<size_t>(v.group_width + step));
  for (int64_t g = 0; g < scales_of(l); ++g) {
    const auto place = from.place(l, g);
    const int64_t n = group_inputs(l, g);
    take_steps(q.data(), l.kind, place.step + from.column * width,
               ceil_div(place.skipped + n, step));
    const auto at = static_cast<size_t>(to * scales_of(l) + g);
    v.scale[at] = scale_at(l, place.tail, from.column);
    v.zero[at] = zero_at(l, place.tail, from.column);
    uint8_t* values = v.values(to, g);
    std::copy_n(q.data() + place.skipped, n, values);
    std::fill(values + n, values + v.group_width, padding_of(l, v.zero[at]));
  }
}

// Columns [to, to + n) of a panel <- as many of these outputs: take() and put() where no step is
// cut.
void copy_outputs(std::byte* panel, const QuantLayout& l, int64_t to, const PackedOutputs& from,
                  int64_t n) {
  const int64_t width = step_bytes(l.kind) / kPanel;
  const int64_t scale = scale_bytes(l) / kPanel;
  for (int64_t g = 0; g < scales_of(l); ++g) {
    const auto [step, tail, skipped] = from.place(l, g);
    std::byte* y = panel + group_offset(l, g);
    const int64_t steps = steps_of(l, group_inputs(l, g));
    for (int64_t s = 0; s < steps; ++s) {
      std::memcpy(y + s * step_bytes(l.kind) + to * width,
                  step + s * step_bytes(l.kind) + from.column * width,
                  static_cast<size_t>(n * width));
    }
    y += steps * step_bytes(l.kind);
    std::memcpy(y + to * scale, tail + from.column * scale, static_cast<size_t>(n * scale));
    if (l.zeros) {
      std::memcpy(y + scale_bytes(l) + to, tail + scale_bytes(l) + from.column,
                  static_cast<size_t>(n));
    }
  }
}

// The value of input k as linear() multiplies by it.
float value_at(const std::byte* panel, const QuantLayout& l, int64_t column, int64_t k) {
  const int64_t g = k / l.group;
  const std::byte* data = panel + group_offset(l, g);
  const std::byte* tail = data + data_bytes(l, group_inputs(l, g));
  const float scale = scale_at(l, tail, column);
  const int64_t within = k - g * l.group;
  const int64_t at = within % step_inputs(l.kind);
  const int64_t width = step_bytes(l.kind) / kPanel;
  const auto byte = std::to_integer<uint8_t>(
      data[within / step_inputs(l.kind) * step_bytes(l.kind) + column * width + at % width]);
  if (l.kind == QuantKind::fp8) return from_e4m3(byte) * scale;
  const int q = l.kind == QuantKind::int8 ? byte : byte >> at / width * 4 & 15;
  return static_cast<float>(q - zero_at(l, tail, column)) * scale;
}

}  // namespace

// Row r of src, its inputs in the order of the weight.
void CpuOps::read_row(float* to, Tensor src, int64_t r, const int32_t* order) const {
  if (src.dtype == Dtype::bf16 && order == nullptr) {
    return kernels_.bf16.widen(to, src.row<const bf16>(r), src.cols());
  }
  for (int64_t i = 0; i < src.cols(); ++i) {
    const int64_t k = order == nullptr ? i : order[i];
    to[i] = src.dtype == Dtype::f32    ? src.row<const float>(r)[k]
            : src.dtype == Dtype::bf16 ? to_float(src.row<const bf16>(r)[k])
                                       : to_float(src.row<const f16>(r)[k]);
  }
}

// What p says of src, its inputs in the given order or as they are.
void CpuOps::quantise_panel(std::byte* panels, const QuantLayout& l, Tensor src, const PanelRows& p,
                            const int32_t* order) const {
  const FlushDenormals flush;
  PanelValues v(l);
  std::vector<float> row(static_cast<size_t>(l.in));
  for (int64_t r = 0; r < p.n; ++r) {
    const int64_t c = p.column + r;
    read_row(row.data(), src, p.row + r, order);
    for (int64_t g = 0; g < scales_of(l); ++g) {
      const auto at = static_cast<size_t>(c * scales_of(l) + g);
      v.scale[at] = fit(v.values(c, g), kernels_, l, row.data() + g * l.group, group_inputs(l, g));
      v.zero[at] = static_cast<uint8_t>(zero_point(l.kind));
    }
  }
  put_rows(panels, l, v, p);
}

void CpuOps::pack_quantised(Weight& w, int64_t group, const RowPlace& place, Tensor src) {
  const QuantLayout l = layout_of(w.format, w.in);
  const int32_t* order = w.order == nullptr ? nullptr : w.order + group * w.in;
  each_packed_panel(place, w.out, [&](const PanelRows& p) {
    loaded_rows(src, p.row, p.n);
    quantise_panel(w.data + group * w.group_bytes, l, src, p, order);
  });
}

void CpuOps::pack(Weight& w, int64_t group, int64_t first, const QuantRows& src, bool interleaved) {
  LORRY_CHECK(first >= 0 && first + src.q.rows() <= w.out && group < w.groups, "rows {} + {} of {}",
              first, src.q.rows(), w.out);
  const QuantLayout l = layout_of(w.format, w.in);
  each_packed_panel({first, src.q.rows(), interleaved}, w.out, [&](const PanelRows& p) {
    PanelValues v(l);
    for (int64_t r = 0; r < p.n; ++r) {
      const int64_t c = p.column + r;
      for (int64_t g = 0; g < scales_of(l); ++g) {
        const auto at = static_cast<size_t>(c * scales_of(l) + g);
        v.scale[at] = src.scale.row<const float>(p.row + r)[g];
        v.zero[at] = l.zeros ? src.zero.row<const uint8_t>(p.row + r)[g]
                             : static_cast<uint8_t>(zero_point(l.kind));
        uint8_t* q = v.values(c, g);
        const int64_t n = group_inputs(l, g);
        std::copy_n(src.q.row<const uint8_t>(p.row + r) + g * l.group, n, q);
        std::fill(q + n, q + v.group_width, padding_of(l, v.zero[at]));
      }
    }
    put_rows(w.data + group * w.group_bytes, l, v, p);
  });
}

void CpuOps::pack(Weight& w, int64_t group, int64_t first, const PackedRows& src,
                  bool interleaved) {
  const QuantLayout l = layout_of(w.format, w.in);
  const QuantLayout whole = layout_of(src.from.format, src.from.in);
  const int64_t step = step_inputs(l.kind);
  const bool whole_steps =
      src.input % step == 0 && (w.in % step == 0 || src.input + w.in == src.from.in);
  const auto outputs_from = [&](int64_t row) {
    const int64_t column = src.column_of(src.first + row);
    const std::byte* panels = src.from.data + src.group * src.from.group_bytes;
    return PackedOutputs{whole, panels + column / kPanel * quant_panel_bytes(whole),
                         column % kPanel, src.input};
  };
  std::byte* to = w.data + group * w.group_bytes;
  each_packed_panel({first, src.n, interleaved}, w.out, [&](const PanelRows& p) {
    const bool filled_up = p.last && p.column + p.n < kPanel;
    if (whole_steps && !filled_up) {
      for (int64_t done = 0, n = 0; done < p.n; done += n) {
        n = std::min(p.n - done, src.side_by_side(p.row + done));
        copy_outputs(to + p.panel * quant_panel_bytes(l), l, p.column + done,
                     outputs_from(p.row + done), n);
      }
      return;
    }
    PanelValues v(l);
    for (int64_t r = 0; r < p.n; ++r) take(v, l, p.column + r, outputs_from(p.row + r));
    put_rows(to, l, v, p);
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
