// What the kernels of linears with int8 and int4 weights share. Products are s8 x s8 on the tensor
// cores, sums of a scale are exact, and f = fma(sum, scale, f) in order of the scales: the CPU's
// bits, whatever kernel does it.
#pragma once
#include "ops/cuda/groups.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/mma.h"

namespace lorry::cuda {

// A lane's part of a chunk as the a operand, times 1 << kShift.
struct LoadS8 {
  using Raw = Word4;
  static constexpr int kBytes = kChunkValues;
  static constexpr int kShift = 0;
  LORRY_DEVICE static Word4 widen(Raw w) { return w; }
  LORRY_DEVICE static Raw raw(const unsigned char* chunk) {
    return reinterpret_cast<const Raw*>(chunk)[lane_index()];
  }
};
struct LoadS4 {
  using Raw = Word2;
  static constexpr int kBytes = kChunkValues / 2;
  static constexpr int kShift = 4;
  // 16 (n - 8) of each nibble n: no sign has to be extended.
  LORRY_DEVICE static uint32_t high(uint32_t w) { return and_xor(w, 0xf0f0f0f0U, 0x80808080U); }
  LORRY_DEVICE static Word4 widen(Raw w) {
    return {high(w.x << 4), high(w.x), high(w.y << 4), high(w.y)};
  }
  LORRY_DEVICE static Raw raw(const unsigned char* chunk) {
    return reinterpret_cast<const Raw*>(chunk)[lane_index()];
  }
};

template <class Load>
LORRY_DEVICE Word4 load_chunk(const unsigned char* chunk) {
  return Load::widen(Load::raw(chunk));
}

// Scales and zero points of a row block, wherever they lie. Zero points are less what Load takes
// off the values.
struct Side {
  const unsigned char* at;
  const unsigned char* zeros;  // null: all are 0
  bool half;
  int offset;  // of zero points

  LORRY_DEVICE Side(const WeightPlan& p, const unsigned char* side)
      : at(side),
        zeros(p.zeros ? side + (p.zeros_offset() - p.scales_offset()) : nullptr),
        half(p.half),
        offset(p.values == Values::s8 ? 128 : 8) {}

  // Of scale u, output o: as it lies, so that a load can be on its way; and as a number.
  LORRY_DEVICE uint32_t load(int u, int o) const {
    const int i = u * kRowBlock + o;
    return half ? reinterpret_cast<const uint16_t*>(at)[i]
                : reinterpret_cast<const uint32_t*>(at)[i];
  }
  LORRY_DEVICE float widen(uint32_t loaded) const {
    return half ? F16::from(static_cast<uint16_t>(loaded)) : as_float(loaded);
  }
  LORRY_DEVICE float scale(int u, int o) const { return widen(load(u, o)); }
  LORRY_DEVICE int zero(int u, int o) const { return zeros[u * kRowBlock + o] - offset; }
};

// A sum as Load makes it, less its zero point times the inputs' sum. Wraps as the tensor cores do;
// what comes out is within range.
template <class Load>
LORRY_DEVICE float exact_sum(int sum, int zero, int inputs) {
  const auto all = static_cast<uint32_t>(sum >> Load::kShift);
  return static_cast<float>(
      static_cast<int>(all - static_cast<uint32_t>(zero) * static_cast<uint32_t>(inputs)));
}

}  // namespace lorry::cuda
