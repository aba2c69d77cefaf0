// Rows quantised to s8 times one panel of u8 or 4-bit weights on AMX tiles: the same whole numbers,
// and the same bits, as quant.h. Included by kernels_amx.cpp only.
#pragma once
#include "ops/cpu/kernels.h"
#include "ops/cpu/quant_layout.h"
#include "ops/cpu/quant_unpack.h"
#include "ops/cpu/tiles.h"

namespace lorry::cpu {
namespace {

// Sums += rows of s8 times quads of u8.
struct TileInt8 {
  template <int Sum, int X, int W>
  static LORRY_INLINE void multiply() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
  }
};

constexpr int64_t kTileInputs = 64;    // of one product
constexpr int64_t kPartInputs = 1024;  // of a panel that are unpacked to bytes at a time
constexpr int64_t kQuadBytes = 256;    // four inputs of 64 outputs

// The inputs of one scale, ready for products.
struct TileGroup {
  const uint8_t* quads;   // [steps * 16] quads; what fills the last product up is zero
  const uint8_t* scales;  // then the zero points, if there are any
  int64_t first;          // input
  int64_t steps;
};

LORRY_INLINE int64_t products_of(int64_t inputs) {
  return (inputs + kTileInputs - 1) / kTileInputs;
}

struct QuantBlock {
  const QuantArgs& m;
  const TileGroup* groups;
  int64_t n_groups, first_group;
  bool begin, end;  // the first groups of the panel, its last
  int64_t row, rows, column;
};

// f [rows, 16 CT] = fma(sums - zero points, scale, f).
template <int CT>
LORRY_INLINE void scale_tile_sums(const QuantBlock& b, const TileGroup& g, int64_t index,
                                  const int32_t* sums, float* f, bool first) {
  const QuantLayout& l = b.m.layout;
  const int64_t n_scales = scales_of(l);
  V16 scale[CT];
  unroll<CT>([&](auto c) LORRY_UNROLLED {
    const int64_t at = b.column + 16 * c;
    scale[c] = l.half ? load_f16(reinterpret_cast<const uint16_t*>(g.scales) + at)
                      : load(reinterpret_cast<const float*>(g.scales) + at);
  });
  const uint8_t* zeros = g.scales + scale_bytes(l) + b.column;
  for (int64_t r = 0; r < b.rows; ++r) {
    const int32_t x_sum = b.m.x_sum[(b.row + r) * n_scales + index];
    const I16 shared = set1_int(-zero_point(l.kind) * x_sum);
    unroll<CT>([&](auto c) LORRY_UNROLLED {
      const I16 zero_sum = l.zeros ? multiply_bytes(zeros + 16 * c, -x_sum) : shared;
      const __m512i sum = _mm512_load_si512(sums + (r * CT + c) * 16);
      const V16 whole = to_floats(I16{_mm512_add_epi32(sum, zero_sum.v)});
      float* at = f + (r * CT + c) * 16;
      store(at, fma(whole, scale[c], first ? zero() : load(at)));
    });
  }
}

template <int RT, int CT>
LORRY_INLINE void quant_block(const QuantBlock& b, const char* ahead, int64_t lines) {
  alignas(64) int32_t sums[RT * CT * 256];
  alignas(64) float f[RT * CT * 256];
  const QuantArgs& m = b.m;
  float* y = m.y + b.row * m.y_pitch + b.column;
  const auto each = [&](auto&& use) LORRY_UNROLLED {
    for (int64_t r = 0; r < b.rows; ++r) {
      for (int64_t c = 0; c < 16 * CT && b.column + c < m.cols; c += 16) {
        const int n = smaller(16, static_cast<int>(m.cols - b.column - c));
        use(f + r * CT * 16 + c, y + r * m.y_pitch + c, r, n);
      }
    }
  };
  if (!b.begin) each([](float* at, float* from, int64_t, int n) { store(at, load_some(from, n)); });
  for (int64_t i = 0; i < b.n_groups; ++i) {
    const TileGroup& g = b.groups[i];
    zero_tiles<RT, CT>();
    TileBlock t = {};
    t.x = static_cast<const char*>(m.x) + b.row * m.x_pitch + g.first;
    t.x_pitch = m.x_pitch;
    t.panel = reinterpret_cast<const char*>(g.quads) + 4 * b.column;
    t.steps = g.steps;
    t.ahead = ahead;
    t.until = -1;
    t.lines = lines;
    t.near = false;
    multiply_tiles<TileInt8, RT, CT>(t);
    ahead += lines * 64 * g.steps;
    store_tiles<RT, CT>(sums, CT * kRowBytes);
    scale_tile_sums<CT>(b, g, b.first_group + i, sums, f, b.begin && i == 0);
  }
  each([&](float* at, float* to, int64_t r, int n) {
    const V16 v = load(at);
    store_some(to, b.end ? mul(v, set1(m.x_scale[b.row + r])) : v, n);
  });
}

// Some groups for all rows. `products`: of the groups together.
LORRY_INLINE void quant_part(QuantBlock b, int64_t products, const char* next, int64_t next_bytes) {
  const QuantArgs& m = b.m;
  const int64_t left = m.rows % 32;
  const int64_t blocks = 2 * (m.rows / 32) + (left > 16 ? 2 : left > 0 ? 1 : 0);
  // The blocks share the prefetching of what is read next.
  const int64_t calls = blocks * products;
  const int64_t lines = next == nullptr ? 0 : (next_bytes / 64 + calls - 1) / calls;
  const auto advance = [&] { next += lines * 64 * products; };
  for (b.row = 0; b.row + 16 < m.rows; b.row += 32) {
    b.rows = b.row + 32 <= m.rows ? 32 : m.rows - b.row;
    if (b.row == 0 || b.rows < 32) configure_tiles(b.rows);
    for (b.column = 0; b.column < 64 && b.column < m.cols; b.column += 32) {
      quant_block<2, 2>(b, next, lines);
      advance();
    }
  }
  if (left > 0 && left <= 16) {
    b.row = m.rows - left;
    b.rows = left;
    b.column = 0;
    configure_tiles(left);
    quant_block<1, 4>(b, next, lines);
  }
}

// The groups [first, last) of a panel, in `memory` where they must be unpacked or filled up.
LORRY_INLINE int64_t tile_groups(const QuantLayout& l, const uint8_t* panel, int64_t first,
                                 int64_t last, uint8_t* memory, TileGroup* groups) {
  int64_t products = 0;
  for (int64_t g = first; g < last; ++g) {
    const uint8_t* data = panel + group_offset(l, g);
    const int64_t inputs = group_inputs(l, g);
    const int64_t steps = products_of(inputs);
    TileGroup& t = groups[g - first];
    t = {data, data + data_bytes(l, inputs), g * l.group, steps};
    products += steps;
    if (l.kind == QuantKind::int4) {
      const int64_t unpacked = 2 * steps_of(l, inputs) * kQuadBytes;
      const int64_t size = steps * kTileInputs * 64;
      unpack_quads(memory, data, steps_of(l, inputs));
      __builtin_memset(memory + unpacked, 0, static_cast<size_t>(size - unpacked));
      t.quads = memory;
      memory += size;
    }
  }
  return products;
}

// Whether tiles may read the weights where they are, or a part's groups fit in `memory`.
LORRY_INLINE bool fits_tiles(const QuantLayout& l) {
  if (l.kind == QuantKind::int4) return l.group <= kPartInputs;
  return l.in % kTileInputs == 0 && (l.group % kTileInputs == 0 || l.group == l.in);
}

void quant_tiles(const QuantArgs& m) {
  constexpr int64_t kMostGroups = kPartInputs / 32;
  // Each group fills whole products: groups of 32 take twice their size.
  alignas(64) uint8_t memory[2 * kPartInputs * 64];
  TileGroup groups[kMostGroups];
  const QuantLayout& l = m.layout;
  const auto* panel = static_cast<const uint8_t*>(m.panel);
  const int64_t n = scales_of(l);
  const int64_t fit = kPartInputs / l.group > 1 ? kPartInputs / l.group : 1;
  const int64_t size = quant_panel_bytes(l);
  for (int64_t g = 0; g < n; g += fit) {
    const int64_t last = g + fit < n ? g + fit : n;
    const int64_t products = tile_groups(l, panel, g, last, memory, groups);
    // As much of the next panel as this part is of this one.
    const int64_t from = group_offset(l, g);
    const int64_t to = last < n ? group_offset(l, last) : size;
    const char* next = m.next == nullptr ? nullptr : static_cast<const char*>(m.next) + from;
    quant_part({m, groups, last - g, g, g == 0, last == n, 0, 0, 0}, products, next, to - from);
  }
  asm volatile("tilerelease");
}

}  // namespace
}  // namespace lorry::cpu
