// Quantised panels for linears that do not multiply in whole numbers: a part of the panel at a time
// is widened into a plain panel that stays in L1, and multiplied as that would be.
#pragma once
#include "ops/cpu/kernels.h"
#include "ops/cpu/quant_layout.h"

namespace lorry::cpu {
namespace {

// 64 outputs of one step of fp8 (two inputs) as a panel of bf16, or of f16, has them.
LORRY_INLINE void widen_pairs(Bf16, uint16_t* to, const uint8_t* step) {
  unroll<4>([&](auto j) LORRY_UNROLLED { widen_e4m3(to + 32 * j, step + 32 * j); });
}
LORRY_INLINE void widen_pairs(F16, uint16_t* to, const uint8_t* step) {
  alignas(64) uint16_t pairs[128];
  widen_pairs(Bf16{}, pairs, step);
  unroll<4>([&](auto j) LORRY_UNROLLED {
    store_f16(to + 16 * j, load_even(pairs + 32 * j));
    store_f16(to + 64 + 16 * j, load_odd(pairs + 32 * j));
  });
}

// A step of the panel to [step_inputs][64] f32.
LORRY_INLINE void widen_step(float* to, const QuantLayout& l, const uint8_t* step,
                             const uint8_t* scales) {
  if (l.kind == QuantKind::fp8) {
    alignas(64) uint16_t pairs[128];
    widen_pairs(Bf16{}, pairs, step);
    for (int j = 0; j < 64; j += 16) {
      store(to + j, load_even(pairs + 2 * j));
      store(to + 64 + j, load_odd(pairs + 2 * j));
    }
    return;
  }
  const int width = l.kind == QuantKind::int8 ? 8 : 4;
  for (int j = 0; j < 64; j += 16) {
    const V16 scale = l.half ? load_f16(reinterpret_cast<const uint16_t*>(scales) + j)
                             : load(reinterpret_cast<const float*>(scales) + j);
    const V16 zero_at = l.zeros ? load_bytes(scales + scale_bytes(l) + j)
                                : set1(static_cast<float>(zero_point(l.kind)));
    for (int i = 0; i < step_inputs(l.kind); ++i) {
      const V16 q = load_field(step + 4 * j, i % 4 * 8 + i / 4 * 4, width);
      store(to + i * 64 + j, mul(sub(q, zero_at), scale));
    }
  }
}

// Prefetches what is read 6 KiB after the line at `offset`.
LORRY_INLINE void prefetch_ahead(const QuantArgs& m, int64_t size, int64_t offset) {
  const int64_t ahead = offset + 6144;
  const char* at = ahead < size || m.next == nullptr
                       ? static_cast<const char*>(m.panel) + ahead
                       : static_cast<const char*>(m.next) + (ahead - size);
  __builtin_prefetch(at, 0, 2);
}

// The panel's inputs [begin, end) to `to`, as a plain panel. Requires: begin starts a step.
template <class A>
LORRY_INLINE void widen_inputs(typename A::Element* to, const QuantArgs& m, int64_t begin,
                               int64_t end) {
  const QuantLayout& l = m.layout;
  const auto* panel = static_cast<const uint8_t*>(m.panel);
  const int64_t size = quant_panel_bytes(l);
  if constexpr (sizeof(typename A::Element) == 2) {
    for (int64_t k = begin; k < end; k += 2, to += 128) {
      prefetch_ahead(m, size, 64 * k);
      prefetch_ahead(m, size, 64 * k + 64);
      widen_pairs(A{}, to, panel + 64 * k);
    }
  } else {
    const int64_t inputs = step_inputs(l.kind);
    for (int64_t k = begin; k < end; k += inputs, to += inputs * 64) {
      const int64_t g = k / l.group;
      const int64_t offset = group_offset(l, g) + data_bytes(l, k - g * l.group);
      for (int64_t i = 0; i < step_bytes(l.kind); i += 64) prefetch_ahead(m, size, offset + i);
      widen_step(to, l, panel + offset,
                 panel + group_offset(l, g) + data_bytes(l, group_inputs(l, g)));
    }
  }
}

template <class A, void (*Matmul)(const MatmulArgs&)>
void widened_matmul(const QuantArgs& m) {
  using Element = typename A::Element;
  constexpr int64_t kInputs = 64 * A::kStep;
  alignas(64) Element panel[kInputs * 64];
  const QuantLayout& l = m.layout;
  for (int64_t k = 0; k < l.in; k += kInputs) {
    const int64_t end = k + kInputs < l.in ? k + kInputs : l.in;
    widen_inputs<A>(panel, m, k, end);
    Matmul({.x = static_cast<const Element*>(m.x) + k,
            .x_pitch = m.x_pitch,
            .panel = panel,
            .next = nullptr,
            .y = m.y,
            .y_pitch = m.y_pitch,
            .in = end - k,
            .rows = m.rows,
            .cols = m.cols,
            .resume = k != 0});
  }
  if (l.kind != QuantKind::fp8) return;
  const auto* bytes = static_cast<const uint8_t*>(m.panel) + data_bytes(l, l.in);
  const auto* scales = reinterpret_cast<const float*>(bytes);
  for (int r = 0; r < m.rows; ++r) multiply_row(m.y + r * m.y_pitch, scales, m.cols);
}

}  // namespace
}  // namespace lorry::cpu
