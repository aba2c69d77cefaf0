// AMX tiles: eight registers of 16 rows of 64 bytes, and a product of two that is added to a third.
// Included by kernels_amx.cpp only, after vector_common.h.
#pragma once
#include <immintrin.h>
#include <stdint.h>

namespace lorry::cpu {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kRowBytes = 64;                        // of a tile
constexpr int64_t kPanelPitch = 256;                     // bytes of a panel: one step of k
constexpr int64_t kPanelStep = kTileRows * kPanelPitch;  // bytes of a panel that a product takes

template <int T>
LORRY_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
LORRY_INLINE void tile_load(const void* p, int64_t pitch) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(pitch), "i"(T) : "memory");
}
template <int T>
LORRY_INLINE void tile_store(void* p, int64_t pitch) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(pitch), "i"(T) : "memory");
}

// Sums += rows of bf16 times pairs of bf16.
struct TileBf16 {
  template <int Sum, int X, int W>
  static LORRY_INLINE void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Sum), "i"(X), "i"(W));
  }
};

struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Up to 32 rows by 64 outputs are RT * CT tiles of sums at a time: 2 by 2, or 1 by 4 for 16 rows.
// Sums are tiles 0 to 3, then RT of x, then weights.
constexpr TileConfig tile_config(int rt, int rows) {
  TileConfig c = {};
  c.palette = 1;
  for (int i = 0; i < 8; ++i) {
    c.row_bytes[i] = kRowBytes;
    c.rows[i] = kTileRows;
  }
  const auto last = static_cast<uint8_t>(rows - (rt - 1) * kTileRows);
  for (int i = 4 - 4 / rt; i < 4; ++i) c.rows[i] = last;
  c.rows[4 + rt - 1] = last;
  return c;
}

// By rows, less one. Ready in memory: the processor would wait for bytes that were just written.
struct TileConfigs {
  TileConfig of[32];
};
constexpr TileConfigs kTileConfigs = [] {
  TileConfigs all = {};
  for (int rows = 1; rows <= 32; ++rows) all.of[rows - 1] = tile_config(rows > 16 ? 2 : 1, rows);
  return all;
}();

// Requires: up to 16 rows with RT 1, 17 to 32 with RT 2.
LORRY_INLINE void configure_tiles(int64_t rows) {
  asm volatile("ldtilecfg %0" ::"m"(kTileConfigs.of[rows - 1]));
}

// What a block of tiles reads: `steps` products from x and panel, then one more from the tails.
struct TileBlock {
  const char* x;
  int64_t x_pitch;  // bytes
  const char* panel;
  int64_t steps;
  const char* x_tail;  // or null; rows of kRowBytes
  const char* panel_tail;
  // Prefetched, `lines` cache lines a step: from `ahead`, and from `then` on after `until` steps.
  const char* ahead;
  const char* then;
  int64_t until;
  int64_t lines;
  bool near;  // to L1, else to L2
};

template <class Op, int RT, int CT>
LORRY_INLINE void tile_step(const char* x, int64_t x_pitch, const char* panel) {
  unroll<RT>([&](auto r)
                 LORRY_UNROLLED { tile_load<4 + r>(x + r * kTileRows * x_pitch, x_pitch); });
  unroll<CT>([&](auto c) LORRY_UNROLLED {
    constexpr int kWeights = 4 + RT + c % (4 - RT);
    tile_load<kWeights>(panel + c * kRowBytes, kPanelPitch);
    unroll<RT>([&](auto r)
                   LORRY_UNROLLED { Op::template multiply<r * CT + c, 4 + r, kWeights>(); });
  });
}

// A line on its way from memory and one from L2 to a tile take the same few buffers of L1, so what
// can be saved is the second way: prefetching to L1 is measured to be better but for two blocks.
LORRY_INLINE void prefetch_lines(const char* at, int64_t lines, bool near) {
  if (near) {
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(at + 64 * i, 0, 3);
  } else {
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(at + 64 * i, 0, 2);
  }
}

// Adds a block's products to the sums.
template <class Op, int RT, int CT>
LORRY_INLINE void multiply_tiles(const TileBlock& b) {
  const char* x = b.x;
  const char* panel = b.panel;
  const char* ahead = b.ahead;
  for (int64_t k = 0; k < b.steps; ++k) {
    if (k == b.until) ahead = b.then;
    prefetch_lines(ahead, b.lines, b.near);
    ahead += 64 * b.lines;
    tile_step<Op, RT, CT>(x, b.x_pitch, panel);
    x += kRowBytes;
    panel += kPanelStep;
  }
  if (b.x_tail != nullptr) tile_step<Op, RT, CT>(b.x_tail, kRowBytes, b.panel_tail);
}

template <int RT, int CT>
LORRY_INLINE void zero_tiles() {
  unroll<RT * CT>([](auto i) LORRY_UNROLLED { tile_zero<i>(); });
}

// From y, row-major.
template <int RT, int CT>
LORRY_INLINE void load_tiles(const void* y, int64_t pitch) {
  unroll<RT>([&](auto r) LORRY_UNROLLED {
    unroll<CT>([&](auto c) LORRY_UNROLLED {
      tile_load<r * CT + c>(static_cast<const char*>(y) + r * kTileRows * pitch + c * kRowBytes,
                            pitch);
    });
  });
}

// To y, row-major.
template <int RT, int CT>
LORRY_INLINE void store_tiles(void* y, int64_t pitch) {
  unroll<RT>([&](auto r) LORRY_UNROLLED {
    unroll<CT>([&](auto c) LORRY_UNROLLED {
      tile_store<r * CT + c>(static_cast<char*>(y) + r * kTileRows * pitch + c * kRowBytes, pitch);
    });
  });
}

}  // namespace
}  // namespace lorry::cpu
