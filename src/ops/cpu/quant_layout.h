// How a panel of 64 quantised outputs lies in memory, the same for every instruction set; it is
// also what packed files hold. For each scale, in order of k: its inputs, its 64 scales (f16; f32
// where an output has only one), its 64 zero points (u8) if they are stored. The inputs, by steps:
//   int8 [4 inputs]: [64][4];  fp8 [2]: [64][2];
//   int4 [8]: [64][4], the low nibbles the first four inputs, the high ones the others.
// A last step that is not whole is filled up with the zero point.
// Plain data only, as kernels.h, and functions that the linker does not see.
#pragma once
#include <stdint.h>

namespace lorry::cpu {

enum class QuantKind : uint8_t { int8, int4, fp8 };

struct QuantLayout {
  QuantKind kind;
  bool half;   // scales are f16
  bool zeros;  // zero points are stored
  int64_t in;
  int64_t group;  // inputs of one scale; `in` where there is only one
};

namespace {

constexpr int64_t step_inputs(QuantKind kind) {
  return kind == QuantKind::int8 ? 4 : kind == QuantKind::int4 ? 8 : 2;
}
constexpr int64_t step_bytes(QuantKind kind) { return kind == QuantKind::fp8 ? 128 : 256; }
constexpr int zero_point(QuantKind kind) {
  return kind == QuantKind::int8 ? 128 : kind == QuantKind::int4 ? 8 : 0;
}
constexpr int64_t steps_of(const QuantLayout& l, int64_t inputs) {
  return (inputs + step_inputs(l.kind) - 1) / step_inputs(l.kind);
}
constexpr int64_t scales_of(const QuantLayout& l) { return (l.in + l.group - 1) / l.group; }
constexpr int64_t group_inputs(const QuantLayout& l, int64_t g) {
  return l.in - g * l.group < l.group ? l.in - g * l.group : l.group;
}
constexpr int64_t data_bytes(const QuantLayout& l, int64_t inputs) {
  return steps_of(l, inputs) * step_bytes(l.kind);
}
constexpr int64_t scale_bytes(const QuantLayout& l) { return l.half ? 128 : 256; }
// Of what follows the inputs of a scale.
constexpr int64_t tail_bytes(const QuantLayout& l) { return scale_bytes(l) + (l.zeros ? 64 : 0); }
constexpr int64_t group_offset(const QuantLayout& l, int64_t g) {
  return g * (data_bytes(l, l.group) + tail_bytes(l));
}
constexpr int64_t quant_panel_bytes(const QuantLayout& l) {
  const int64_t last = scales_of(l) - 1;
  return group_offset(l, last) + data_bytes(l, group_inputs(l, last)) + tail_bytes(l);
}

}  // namespace
}  // namespace lorry::cpu
