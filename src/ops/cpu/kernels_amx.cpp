// The kernels for AMX: bf16 linears and attention on tiles, everything else as in avx512_fma.
// Compiled with -mavx512... and -mamx...: see kernels_avx512.cpp.
//
// Bits: a tile product of bf16 takes 32 k, as two sums from zero, over the even k and over the odd
// ones, which are added, and then added to the accumulator. So bf16 linears, and attention over
// keys and values in bf16, have other bits than on the other instruction sets: the same ones for
// every number of rows.
#if defined(__x86_64__) && !defined(LORRY_ONLY_SCALAR)
// clang-format off
#include "ops/cpu/kernels.h"
#include "ops/cpu/vector_avx512.h"
#include "ops/cpu/vector_common.h"
#include "ops/cpu/tiles.h"
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "ops/cpu/attend.h"
#include "ops/cpu/attend_tiles.h"
#include "ops/cpu/rows.h"
#include "ops/cpu/quant_wide.h"
#include "ops/cpu/quant_tiles.h"
#pragma GCC diagnostic pop
// clang-format on

namespace lorry::cpu {
namespace {

constexpr int64_t kTileK = 32;      // bf16 of one row of a tile
constexpr int64_t kAheadSteps = 4;  // how far a single block prefetches in its own panel

// The last, shorter step of k with zeros after it.
struct Tail {
  alignas(64) uint16_t x[kMostRows * kTileK];
  alignas(64) uint16_t panel[kPanelStep / 2];

  void fill(const MatmulArgs& m, int64_t steps) {
    const int64_t left = m.in - steps * kTileK;
    const auto* rows = static_cast<const uint16_t*>(m.x) + steps * kTileK;
    __builtin_memset(x, 0, static_cast<size_t>(m.rows) * kRowBytes);
    for (int64_t r = 0; r < m.rows; ++r) {
      __builtin_memcpy(x + r * kTileK, rows + r * m.x_pitch, static_cast<size_t>(left) * 2);
    }
    const auto bytes = static_cast<size_t>((left + 1) / 2 * kPanelPitch);
    __builtin_memset(panel, 0, sizeof panel);
    __builtin_memcpy(panel, static_cast<const char*>(m.panel) + steps * kPanelStep, bytes);
  }
};

// What of the next panel, or of this one, a block prefetches: block `i` of `n`.
LORRY_INLINE void plan_ahead(TileBlock& b, const MatmulArgs& m, int64_t i, int64_t n) {
  constexpr int64_t kLines = kPanelStep / 64;
  const char* next = static_cast<const char*>(m.next != nullptr ? m.next : m.panel);
  b.then = next;
  b.near = n != 2;
  if (n == 1) {
    b.lines = kLines;
    b.ahead = b.panel + kAheadSteps * kPanelStep;
    b.until = b.steps > kAheadSteps ? b.steps - kAheadSteps : 0;
    return;
  }
  b.lines = m.next == nullptr ? 0 : (kLines + n - 1) / n;
  b.ahead = next + i * b.lines * 64 * b.steps;
  b.until = -1;
}

// Rows of y to or from sums [32][16 CT].
template <int CT, bool Store>
LORRY_INLINE void copy_sums(const MatmulArgs& m, float* sums, int64_t row, int64_t rows,
                            int64_t column) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; column + c < m.cols && c < 16 * CT; c += 16) {
      const int n = smaller(16, static_cast<int>(m.cols - column - c));
      float* y = m.y + (row + r) * m.y_pitch + column + c;
      float* at = sums + r * CT * 16 + c;
      Store ? store_some(y, load(at), n) : store(at, load_some(y, n));
    }
  }
}

template <int RT, int CT>
LORRY_INLINE void block_of(const MatmulArgs& m, const TileBlock& b, int64_t row, int64_t rows,
                           int64_t column) {
  // Where a block of columns is cut off, y passes through here.
  alignas(64) float sums[RT * kTileRows * CT * 16];
  const bool whole = column + 16 * CT <= m.cols;
  float* y = whole ? m.y + row * m.y_pitch + column : sums;
  const int64_t pitch = whole ? m.y_pitch * 4 : CT * kRowBytes;
  if (!m.resume) {
    zero_tiles<RT, CT>();
  } else {
    if (!whole) copy_sums<CT, false>(m, sums, row, rows, column);
    load_tiles<RT, CT>(y, pitch);
  }
  multiply_tiles<TileBf16, RT, CT>(b);
  store_tiles<RT, CT>(y, pitch);
  if (!whole) copy_sums<CT, true>(m, sums, row, rows, column);
}

void matmul_tiles(const MatmulArgs& m) {
  const int64_t steps = m.in / kTileK;
  Tail tail;
  const bool has_tail = steps * kTileK < m.in;
  if (has_tail) tail.fill(m, steps);
  const int64_t pairs = m.rows / 32;
  const int64_t left = m.rows - pairs * 32;  // 17 to 31: two tiles of rows, else one
  const int64_t blocks = 2 * pairs + (left > 16 ? 2 : left > 0 ? 1 : 0);
  int64_t done = 0;
  const auto make = [&](int64_t row, int64_t column) LORRY_UNROLLED {
    TileBlock b;
    b.x = static_cast<const char*>(m.x) + row * m.x_pitch * 2;
    b.x_pitch = m.x_pitch * 2;
    b.panel = static_cast<const char*>(m.panel) + column * 4;
    b.steps = steps;
    b.x_tail = has_tail ? reinterpret_cast<const char*>(tail.x + row * kTileK) : nullptr;
    b.panel_tail = reinterpret_cast<const char*>(tail.panel + column * 2);
    plan_ahead(b, m, done++, blocks);
    return b;
  };
  for (int64_t row = 0; row + 16 < m.rows; row += 32) {
    const int64_t rows = row + 32 <= m.rows ? 32 : m.rows - row;
    if (row == 0 || rows < 32) configure_tiles(rows);
    for (const int64_t column : {0, 32}) {
      if (column < m.cols) block_of<2, 2>(m, make(row, column), row, rows, column);
    }
  }
  if (left > 0 && left <= 16) {
    const int64_t row = m.rows - left;
    configure_tiles(left);
    block_of<1, 4>(m, make(row, 0), row, left, 0);
  }
  asm volatile("tilerelease");
}

// Few rows wait for memory, and unpacking for tiles pays with more: measured where it turns.
void quant_rows_or_tiles(const QuantArgs& m) {
  const int32_t few = m.layout.kind == QuantKind::int4 ? 12 : 4;
  if (m.rows <= few || !fits_tiles(m.layout)) return avx512_kernels().quant(m);
  quant_tiles(m);
}

// Products of tiles in registers.
template <class Op>
void spin_tiles(int64_t iterations, float* sink) {
  configure_tiles(32);
  unroll<8>([](auto i) LORRY_UNROLLED { tile_zero<i>(); });
  for (int64_t k = 0; k < iterations / 32; ++k) {
    Op::template multiply<0, 4, 6>();
    Op::template multiply<1, 4, 7>();
    Op::template multiply<2, 5, 6>();
    Op::template multiply<3, 5, 7>();
  }
  asm volatile("tilerelease");
  *sink = 0;
}
constexpr double kSpinTileFlops = 4.0 * 16 * 16 * 32 * 2 / 32;  // of an iteration

}  // namespace

const Kernels& amx_kernels() {
  static const Kernels kTable = [] {
    Kernels k = avx512_fma_kernels();
    k.tile_rows = 32;
    k.block_rows = 192;
    k.bf16.matmul = matmul_tiles;
    k.bf16.attend = {attend_tiles, load_q<KvBf16>};
    k.bf16.quant_wide = widened_matmul<Bf16, matmul_tiles>;
    k.quant = quant_rows_or_tiles;
    k.spin = spin_tiles<TileBf16>;
    k.spin_int8 = spin_tiles<TileInt8>;
    k.spin_int8_ops = 2 * kSpinTileFlops;
    k.spin_flops = kSpinTileFlops;
    return k;
  }();
  return kTable;
}

}  // namespace lorry::cpu
#endif
