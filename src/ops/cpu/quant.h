// Rows quantised to s8 times one panel of u8 or 4-bit weights. The sum of the inputs of one scale
// is exact in i32, so only the order of the scales matters, and that is fixed.
#pragma once
#include "ops/cpu/kernels.h"
#include "ops/cpu/quant_layout.h"
#include "ops/cpu/quant_unpack.h"

namespace lorry::cpu {
namespace {

// Panels are read in parts of about this size, so that a part stays in L2 while all rows pass over
// it. Parts that stay in L1 were slower: sums would leave the registers more often.
constexpr int64_t kQuantPartBytes = 256 << 10;
// Of four-bit weights that many passes share, as much is unpacked to bytes at a time, twice the
// size.
constexpr int64_t kUnpackBytes = 36 << 10;
constexpr int kUnpackPasses = 4;
// How far ahead of its own reading a single pass prefetches.
constexpr int64_t kQuantAhead = 6 << 10;
// Several passes share the prefetching of what is read one panel later, but not further ahead than
// L2 holds.
constexpr int64_t kQuantFarAhead = 256 << 10;
// Steps that are unrolled, and the cache lines in them. Up to so many passes share: the more evenly
// prefetches come, the less they hold up the loads of the part.
constexpr int kQuantSteps = 4;
constexpr int64_t kQuantLines = kQuantSteps * 256 / 64;

struct Int8 {
  static constexpr int kQuads = 1;  // quads of inputs in a step
  template <int>
  static LORRY_INLINE W64 quads(const uint8_t* p) {
    return load_quads(p);
  }
};

struct Int4 {
  static constexpr int kQuads = 2;
  template <int High>
  static LORRY_INLINE W64 quads(const uint8_t* p) {
    return High != 0 ? load_high(p) : load_low(p);
  }
};

// The memory of a tile of up to kMaxRows rows: results, or while a scale is not finished, the bits
// of its sums.
constexpr int kTilePitch = 64;

// The inputs of one scale, or some of them, for a tile.
struct QuantPiece {
  const uint8_t* data;
  int64_t at;  // where that is in the panel
  int64_t steps;
  int64_t first_input;
  int64_t g;
  bool open, close;  // these are the scale's first inputs, its last
};

struct QuantPass {
  const int8_t* x;
  int64_t x_pitch;
  const int32_t* x_sum;
  int64_t sum_pitch;
  const uint8_t* zeros;  // or null: zero_point
  int32_t zero_point;
  const uint8_t* scales;
  bool half;
  QuantPiece piece;
  float* tile;
  int cols;
  Ahead ahead;
  int tail_lines;  // to prefetch beside those of the steps
};

template <int MR, int NV>
LORRY_INLINE void begin_sums(const QuantPass& p, int first, I16* c) {
  if (!p.piece.open) {
    unroll<MR * NV>([&](auto i) LORRY_UNROLLED {
      c[i] = as_ints(load(p.tile + i / NV * kTilePitch + 16 * (first + i % NV)));
    });
  } else if (p.zeros == nullptr) {
    unroll<MR>([&](auto i) LORRY_UNROLLED {
      const I16 sum = set1_int(-p.zero_point * p.x_sum[i * p.sum_pitch]);
      unroll<NV>([&](auto j) LORRY_UNROLLED { c[i * NV + j] = sum; });
    });
  } else {
    unroll<MR * NV>([&](auto i) LORRY_UNROLLED {
      c[i] = multiply_bytes(p.zeros + 16 * (first + i % NV), -p.x_sum[i / NV * p.sum_pitch]);
    });
  }
}

template <int MR, int NV, bool Add>
LORRY_INLINE void scale_sums(const QuantPass& p, int first, const I16* c) {
  unroll<NV>([&](auto j) LORRY_UNROLLED {
    const int column = 16 * (first + j);
    const V16 scale = p.half ? load_f16(reinterpret_cast<const uint16_t*>(p.scales) + column)
                             : load(reinterpret_cast<const float*>(p.scales) + column);
    unroll<MR>([&](auto i) LORRY_UNROLLED {
      float* f = p.tile + i * kTilePitch + column;
      store(f, fma(to_floats(c[i * NV + j]), scale, Add ? load(f) : zero()));
    });
  });
}

template <int MR, int NV>
LORRY_INLINE void end_sums(const QuantPass& p, int first, const I16* c) {
  if (p.piece.close && p.piece.g > 0) return scale_sums<MR, NV, true>(p, first, c);
  if (p.piece.close) return scale_sums<MR, NV, false>(p, first, c);
  unroll<MR * NV>([&](auto i) LORRY_UNROLLED {
    store(p.tile + i / NV * kTilePitch + 16 * (first + i % NV), as_floats(c[i]));
  });
}

// MR rows by NV vectors of columns from vector `first`. PF: cache lines to prefetch for
// each kQuantSteps.
template <class Q, int MR, int NV, int PF>
LORRY_INLINE void quant_tile(const QuantPass& p, int first) {
  I16 c[MR * NV];
  begin_sums<MR, NV>(p, first, c);
  const uint8_t* data = p.piece.data + 64 * first;
  const int8_t* x = p.x + p.piece.first_input;
  const char* ahead = p.ahead.at;
  int64_t until = p.ahead.until;
  const auto step = [&](auto at) LORRY_UNROLLED {
    const uint8_t* from = data + 256 * at;
    unroll<Q::kQuads>([&](auto h) LORRY_UNROLLED {
      W64 w[NV];
      unroll<NV>([&](auto j) LORRY_UNROLLED { w[j] = Q::template quads<h>(from + 64 * j); });
      unroll<MR>([&](auto i) LORRY_UNROLLED {
        const X4 a = broadcast_quad(x + i * p.x_pitch + 4 * (Q::kQuads * at + h));
        unroll<NV>([&](auto j) LORRY_UNROLLED { accumulate(c[i * NV + j], w[j], a); });
      });
    });
  };
  int64_t k = 0;
  for (; k + kQuantSteps <= p.piece.steps; k += kQuantSteps) {
    if constexpr (PF > 0) {
      if (k >= until) {
        ahead = p.ahead.then;
        until = p.piece.steps;
      }
      unroll<PF>([&](auto j) LORRY_UNROLLED { __builtin_prefetch(ahead + 64 * j, 0, 2); });
      ahead += 64 * PF;
    }
    unroll<kQuantSteps>(step);
    data += 256 * kQuantSteps;
    x += 4 * Q::kQuads * kQuantSteps;
  }
  for (; k < p.piece.steps; ++k) {
    step(Constant<0>{});
    data += 256;
    x += 4 * Q::kQuads;
  }
  if constexpr (PF > 0) {
    for (int j = 0; j < p.tail_lines; ++j) __builtin_prefetch(ahead + 64 * j, 0, 2);
  }
  end_sums<MR, NV>(p, first, c);
}

// Pieces and parts of a panel: the pieces are the scales, many to a part of `bytes`; or where there
// is only one scale, they are the parts.
struct QuantParts {
  QuantParts(const QuantArgs& args, int64_t bytes)
      : m(args), l(args.layout), size(quant_panel_bytes(l)), one(l.group >= l.in) {
    const int64_t units = one ? steps_of(l, l.in) : scales_of(l);
    const int64_t fit = bytes / (one ? 256 : group_offset(l, 1));
    const int64_t parts = fit > 0 ? (units + fit - 1) / fit : units;
    per_part = (units + parts - 1) / parts;  // parts of nearly equal size
    pieces = one ? (units + per_part - 1) / per_part : units;
  }
  int64_t parts() const { return one ? pieces : (pieces + per_part - 1) / per_part; }
  int64_t end_of(int64_t part) const {
    const int64_t end = (part + 1) * (one ? 1 : per_part);
    return end < pieces ? end : pieces;
  }
  int64_t begin_of(int64_t part) const { return part * (one ? 1 : per_part); }
  QuantPiece piece(int64_t i) const {
    const int64_t g = one ? 0 : i;
    const int64_t steps = steps_of(l, group_inputs(l, g));
    const int64_t begin = one ? i * per_part : 0;
    const int64_t end = one && begin + per_part < steps ? begin + per_part : steps;
    const int64_t at = group_offset(l, g) + begin * 256;
    return {static_cast<const uint8_t*>(m.panel) + at,
            at,
            end - begin,
            g * l.group + begin * step_inputs(l.kind),
            g,
            begin == 0,
            end == steps};
  }

  const QuantArgs& m;
  const QuantLayout& l;
  int64_t size;
  bool one;
  int64_t per_part, pieces;
};

// How a pass prefetches: some of every `of` lines, of what is read `distance` bytes later; pass
// `pass` of those that share it. kQuantSteps read `of` lines of the panel.
struct QuantAhead {
  int64_t distance, of, pass;
};

// PF: lines of every `of`.
template <int PF>
LORRY_INLINE void plan_quant_ahead(QuantPass& p, const QuantParts& parts, const QuantAhead& a) {
  const char* panel = static_cast<const char*>(parts.m.panel);
  const char* next = parts.m.next != nullptr ? static_cast<const char*>(parts.m.next) : panel;
  const int64_t tail = p.piece.close ? (tail_bytes(parts.l) / 64 * PF + a.of - 1) / a.of : 0;
  const int64_t share = 64 * (p.piece.steps / kQuantSteps * PF + tail);
  const int64_t at = p.piece.at + a.distance + a.pass * share;
  p.tail_lines = static_cast<int>(tail);
  if (at >= parts.size) {
    p.ahead = {next + (at - parts.size), next, p.piece.steps};
  } else {
    p.ahead = {panel + at, next, (parts.size - at) / (64 * PF) * kQuantSteps};
  }
}

// A part of a panel that all rows pass over; where it is unpacked, in `bytes`.
struct QuantPart {
  int64_t begin, end;  // pieces
  const uint8_t* bytes;
};

// The columns after the first vectors: without prefetches, so one function for every PF.
template <class Q, int MR>
void quant_rest(const QuantPass& p) {
  constexpr int kVectors = tile_vectors(MR);
  for (int j = kVectors; 16 * j < p.cols; j += kVectors) quant_tile<Q, MR, kVectors, 0>(p, j);
}

// MR rows over a part. The pass is not copied: wide loads of what was just written in words would
// wait until all stores before them are done, those of results to y among them.
template <class Q, int MR, int PF>
void quant_pass(QuantPass& p, const QuantParts& parts, const QuantPart& part,
                const QuantAhead& ahead) {
  constexpr int kVectors = tile_vectors(MR);
  const QuantLayout& l = parts.l;
  const int32_t* sums = p.x_sum;
  const uint8_t* bytes = part.bytes;
  for (int64_t i = part.begin; i < part.end; ++i) {
    p.piece = parts.piece(i);
    if (bytes != nullptr) {
      p.piece.data = bytes;
      p.piece.steps *= 2;
      bytes += 256 * p.piece.steps;
    }
    p.x_sum = sums + p.piece.g;
    p.scales = static_cast<const uint8_t*>(parts.m.panel) + group_offset(l, p.piece.g) +
               data_bytes(l, group_inputs(l, p.piece.g));
    p.zeros = l.zeros ? p.scales + scale_bytes(l) : nullptr;
    if constexpr (PF > 0) plan_quant_ahead<PF>(p, parts, ahead);
    quant_tile<Q, MR, kVectors, PF>(p, 0);
    if constexpr (kVectors < 4) quant_rest<Q, MR>(p);
  }
}

// As quant_lines has it: the more passes share the lines, the fewer each, and the more rows.
template <class Q, int MR>
LORRY_INLINE void quant_rows(QuantPass& p, const QuantParts& parts, const QuantPart& part,
                             const QuantAhead& ahead, int rows, int64_t lines) {
  if constexpr (MR > 1) {
    if (rows < MR) return quant_rows<Q, MR - 1>(p, parts, part, ahead, rows, lines);
  }
  if constexpr (MR >= fewest_rows(2)) {
    if (lines == 0) return quant_pass<Q, MR, 0>(p, parts, part, ahead);
    if (lines == 8) return quant_pass<Q, MR, 8>(p, parts, part, ahead);
  }
  if constexpr (MR >= fewest_rows(4)) {
    if (lines == 4) return quant_pass<Q, MR, 4>(p, parts, part, ahead);
    if (lines == 2) return quant_pass<Q, MR, 2>(p, parts, part, ahead);
  }
  if constexpr (MR >= fewest_rows(8)) {
    if (lines == 1) return quant_pass<Q, MR, 1>(p, parts, part, ahead);
  }
  quant_pass<Q, MR, 16>(p, parts, part, ahead);
}

// The tile of rows r, r + 1 ... to y, or back from there.
LORRY_INLINE void store_tile(const QuantArgs& m, const float* tile, int r, int rows, bool last) {
  for (int i = 0; i < rows; ++i) {
    const V16 scale = set1(m.x_scale[r + i]);
    for_vectors(m.cols, [&](int64_t c, int n) LORRY_UNROLLED {
      const V16 f = load(tile + i * kTilePitch + c);
      store_some(m.y + (r + i) * m.y_pitch + c, last ? mul(f, scale) : f, n);
    });
  }
}
LORRY_INLINE void load_tile(const QuantArgs& m, float* tile, int r, int rows) {
  for (int i = 0; i < rows; ++i) {
    for_vectors(m.cols, [&](int64_t c, int n) LORRY_UNROLLED {
      store(tile + i * kTilePitch + c, load_some(m.y + (r + i) * m.y_pitch + c, n));
    });
  }
}

// All rows over the part, in passes of nearly equal height: 4 + 4 rather than 6 + 2.
template <class Q>
LORRY_INLINE void quant_part(QuantPass& p, const QuantParts& parts, const QuantPart& part,
                             int64_t lines, QuantAhead ahead) {
  const QuantArgs& m = parts.m;
  const int passes = (m.rows + kMaxRows - 1) / kMaxRows;
  int r = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const int rows = m.rows / passes + (pass < m.rows % passes ? 1 : 0);
    const bool shares = pass * lines < ahead.of && (passes == 1 || m.next != nullptr);
    ahead.pass = pass;
    p.x = static_cast<const int8_t*>(m.x) + r * m.x_pitch;
    p.x_sum = m.x_sum + r * p.sum_pitch;
    if (part.begin > 0) load_tile(m, p.tile, r, rows);
    quant_rows<Q, kMaxRows>(p, parts, part, ahead, rows, shares ? lines : 0);
    store_tile(m, p.tile, r, rows, part.end == parts.pieces);
    r += rows;
  }
}

LORRY_INLINE QuantPass quant_pass_of(const QuantArgs& m, float* tile) {
  return {.x = nullptr,
          .x_pitch = m.x_pitch,
          .x_sum = nullptr,
          .sum_pitch = scales_of(m.layout),
          .zeros = nullptr,
          .zero_point = zero_point(m.layout.kind),
          .scales = nullptr,
          .half = m.layout.half,
          .piece = {},
          .tile = tile,
          .cols = m.cols,
          .ahead = {},
          .tail_lines = 0};
}

// Lines of every kQuantLines that one of `passes` passes prefetches.
constexpr int64_t quant_lines(int passes) {
  return passes == 1 ? 16 : passes < 4 ? 8 : passes < 8 ? 4 : passes < 16 ? 2 : 1;
}

template <class Q>
LORRY_INLINE void quant_panel(const QuantArgs& m) {
  alignas(64) float tile[kMaxRows * kTilePitch];
  QuantPass p = quant_pass_of(m, tile);
  const QuantParts parts(m, kQuantPartBytes);
  const int passes = (m.rows + kMaxRows - 1) / kMaxRows;
  const int64_t lines = quant_lines(passes);
  const int64_t far = parts.size < kQuantFarAhead ? parts.size : kQuantFarAhead;
  const QuantAhead ahead = {passes == 1 ? kQuantAhead : far, kQuantLines, 0};
  for (int64_t i = 0; i < parts.parts(); ++i) {
    quant_part<Q>(p, parts, {parts.begin_of(i), parts.end_of(i), nullptr}, lines, ahead);
  }
}

// Of four bits: unpacked once for all passes.
void unpacked_panel(const QuantArgs& m) {
  alignas(64) float tile[kMaxRows * kTilePitch];
  alignas(64) uint8_t bytes[2 * kUnpackBytes];
  QuantPass p = quant_pass_of(m, tile);
  const QuantParts parts(m, kUnpackBytes);
  const int64_t lines = m.rows > 8 * kMaxRows ? 1 : 2;
  for (int64_t i = 0; i < parts.parts(); ++i) {
    const QuantPart part = {parts.begin_of(i), parts.end_of(i), bytes};
    uint8_t* to = bytes;
    for (int64_t j = part.begin; j < part.end; ++j) {
      const QuantPiece piece = parts.piece(j);
      unpack_quads(to, piece.data, piece.steps);
      to += 512 * piece.steps;
    }
    // What is read next: the next part, or the first of the next panel.
    const int64_t first = parts.piece(part.begin).at;
    const int64_t end = part.end < parts.pieces ? parts.piece(part.end).at : parts.size;
    quant_part<Int8>(p, parts, part, lines, {end - first, kQuantLines / 2, 0});
  }
}

void quant_matmul(const QuantArgs& m) {
  const QuantLayout& l = m.layout;
  if (l.kind == QuantKind::int8) return quant_panel<Int8>(m);
  const bool fits = l.group >= l.in || group_offset(l, 1) <= kUnpackBytes;
  fits&& m.rows > (kUnpackPasses - 1) * kMaxRows ? unpacked_panel(m) : quant_panel<Int4>(m);
}

}  // namespace
}  // namespace lorry::cpu
