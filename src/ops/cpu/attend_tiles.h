// attend() for bf16 on AMX: the blocks of keys and of values are laid out as tiles are. A tile
// product takes 32 dimensions of 16 keys, or 16 tokens of 16 dimensions of the values; it sums the
// even and the odd elements from zero, adds the two, and then adds them to the sum: other bits than
// on the other instruction sets, and the same ones for every number of rows.
// Included by kernels_amx.cpp only, after attend.h and tiles.h.
#pragma once

namespace lorry::cpu {
namespace {

// Sums are tiles 0 to 3, then the rows, then keys or values. Of a block of values, 8 pairs of
// tokens.
constexpr TileConfig value_config(int rows) {
  TileConfig c = tile_config(1, rows);
  c.row_bytes[4] = kRowBytes / 2;
  for (int i = 5; i < 8; ++i) c.rows[i] = 8;
  return c;
}
struct ValueConfigs {
  TileConfig of[kTileRows];
};
constexpr ValueConfigs kValueConfigs = [] {
  ValueConfigs all = {};
  for (int rows = 1; rows <= kTileRows; ++rows) all.of[rows - 1] = value_config(rows);
  return all;
}();

// Scores of up to 16 rows. Fetch: prefetches what is read after them.
template <bool Fetch>
LORRY_INLINE void score_tiles(const AttendArgs& a, const uint16_t* q, int rows, float* s) {
  configure_tiles(rows);
  for (int first = 0; first < a.blocks; first += 4) {
    zero_tiles<1, 4>();
    for (int64_t x = 0; x < a.d; x += 32) {
      tile_load<4>(q + x, a.d * 2);
      unroll<4>([&](auto j) LORRY_UNROLLED {
        // Past the last block the last one is read again, and the result never used.
        const int b = smaller(first + j, a.blocks - 1);
        tile_load<5 + j % 3>(static_cast<const uint16_t*>(a.k[b]) + 16 * x, kRowBytes);
        TileBf16::multiply<j, 4, 5 + j % 3>();
        if constexpr (Fetch) {
          const uint16_t* ahead = static_cast<const uint16_t*>(a.ahead[b]) + 16 * x;
          unroll<16>([&](auto i) LORRY_UNROLLED { prefetch_line(ahead + 32 * i); });
        }
      });
    }
    unroll<4>([&](auto j) LORRY_UNROLLED {
      if (first + j < a.blocks) tile_store<j>(s + 16 * (first + j), kSplitKeys * 4);
    });
  }
  const V16 scale = set1(a.scale);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < 16 * a.blocks; i += 16) {
      float* at = s + r * kSplitKeys + i;
      store(at, mul(load(at), scale));
    }
  }
}

// 16 NV dimensions from x. Fetch: prefetches the same places of what is read later.
template <int NV, bool Fetch>
LORRY_INLINE void value_tiles(const AttendArgs& a, const uint16_t* p, float* o, int64_t x) {
  zero_tiles<1, NV>();
  const int64_t pitch = a.d * 4;
  for (int b = 0; b < a.blocks; ++b) {
    const char* v = static_cast<const char*>(a.v[b]) + x * 4;
    tile_load<4>(p + 16 * b, kSplitKeys * 2);
    unroll<NV>([&](auto j) LORRY_UNROLLED {
      tile_load<5 + j % 3>(v + j * kRowBytes, pitch);
      TileBf16::multiply<j, 4, 5 + j % 3>();
    });
    if constexpr (Fetch) {
      const char* next = static_cast<const char*>(a.ahead[a.blocks + b]) + x * 4;
      for (int t = 0; t < 8; ++t, next += pitch) {
        unroll<NV>([&](auto j) LORRY_UNROLLED { prefetch_line(next + 64 * j); });
      }
    }
  }
  unroll<NV>([&](auto j) LORRY_UNROLLED { tile_store<j>(o + x + 16 * j, pitch); });
}

template <bool Fetch>
LORRY_INLINE void weigh_values(const AttendArgs& a, const uint16_t* p, float* o, int rows) {
  asm volatile("ldtilecfg %0" ::"m"(kValueConfigs.of[rows - 1]));
  int64_t x = 0;
  for (; x + 64 <= a.d; x += 64) value_tiles<4, Fetch>(a, p, o, x);
  if (x < a.d) value_tiles<2, Fetch>(a, p, o, x);
  // + 0 as in value_tile.
  for (int64_t i = 0; i < rows * a.d; i += 16) store(o + i, add(load(o + i), zero()));
}

void attend_tiles(const AttendArgs& a) {
  if (a.d % 32 != 0) return attend<KvBf16>(a);
  alignas(64) float s[kTileRows * kSplitKeys];
  alignas(64) uint16_t p[kTileRows * kSplitKeys];
  const int passes = (a.rows + static_cast<int>(kTileRows) - 1) / static_cast<int>(kTileRows);
  int row = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const int rows = a.rows / passes + (pass < a.rows % passes ? 1 : 0);
    const uint16_t* q = static_cast<const uint16_t*>(a.q) + row * int64_t{a.d};
    float* o = a.o + row * int64_t{a.d};
    pass == 0 ? score_tiles<true>(a, q, rows, s) : score_tiles<false>(a, q, rows, s);
    for (int i = 0; i < rows; ++i) {
      softmax_split<KvBf16>(a, row + i, s + i * kSplitKeys, p + i * kSplitKeys);
    }
    pass == 0 ? weigh_values<true>(a, p, o, rows) : weigh_values<false>(a, p, o, rows);
    row += rows;
  }
  asm volatile("tilerelease");
}

}  // namespace
}  // namespace lorry::cpu
