// linear with int8 and int4 weights for few rows, and glu at its end: weights stream through shared
// memory.
//
// A block has a few row blocks, one after the other. Its inputs are cut into pieces, most often
// those of one scale, which its warps share round by round; a warp has many units of chunks on
// their way at once, those of rounds and row blocks to come among them. After a round a thread adds
// the sums of its output in order.
#include "ops/cuda/activation.h"
#include "ops/cuda/groups.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/quant.h"
#include "ops/cuda/quant_stream.h"
#include "ops/cuda/quant_sums.h"

namespace lorry::cuda {

namespace {

constexpr int kOfAProcessor = 4;  // blocks at once

struct DecodeArgs {
  QuantArgs quant;
  int32_t blocks;  // row blocks of a block of threads
  int32_t sides;   // as Sides
};

LORRY_DEVICE Word4 half_pair(const int8_t* at) {
  const Word2 w = *reinterpret_cast<const Word2*>(at);
  return {w.x, w.y, 0, 0};
}

// xq of kN x 8 rows as the b operand: of a unit, the one that is multiplied next. Rows beyond the
// last are the last one's.
template <class S>
struct UnitRows {
  static constexpr int kPairs = (S::kUnit + 1) / 2;
  const Pieces& pieces;
  Walk<S> walk;
  const int8_t* row[S::kN];
  Word4 pair[kPairs][S::kN] = {};  // of two chunks; of a unit of one chunk half is used

  LORRY_DEVICE explicit UnitRows(const Pieces& p) : pieces(p), walk(p) {}
  // Rows first ..., from the beginning of a pass on.
  LORRY_DEVICE void begin(const QuantArgs& q, int32_t first, int32_t end) {
    const int64_t pitch = quantised_pitch(q.linear.plan);
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) {
      const int32_t r = first + 8 * n + lane_index() / 4;
      row[n] = q.xq + (r < end ? r : end - 1) * pitch + lane_index() % 4 * 16;
    }
    if (!pieces.idle<S>()) load();
  }
  LORRY_DEVICE void next() {
    walk.next(pieces);
    load();
  }

 private:
  LORRY_DEVICE void load() {
    const int chunk = walk.chunk;
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) {
      if constexpr (S::kUnit == 1) {
        pair[0][n] = half_pair(row[n] + chunk / 2 * 64 + chunk % 2 * 8);
      } else {
        LORRY_UNROLL
        for (int p = 0; p < kPairs; ++p) {
          pair[p][n] = *reinterpret_cast<const Word4*>(row[n] + int64_t{chunk} * kChunk + p * 64);
        }
      }
    }
  }
};

// unit: the lane's part. Beyond the last chunk x is zero, and it does not matter what the weights
// are.
template <class S>
LORRY_DEVICE void multiply_unit(Int4 (&sum)[S::kN], const unsigned char* unit,
                                const UnitRows<S>& x) {
  LORRY_UNROLL
  for (int c = 0; c < S::kUnit; ++c) {
    using Load = typename S::Load;
    const Word4 a =
        Load::widen(*reinterpret_cast<const typename Load::Raw*>(unit + c * Load::kBytes));
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) {
      const Word4& b = x.pair[c / 2][n];
      c % 2 == 0 ? mma_s8(sum[n], a, b.x, b.y) : mma_s8(sum[n], a, b.z, b.w);
    }
  }
}

// What goes on from pass to pass.
template <class S>
struct State {
  DecodeRing<S>& ring;
  UnitRows<S> x;
  unsigned rounds = 0;
  int side = 0;
};

// The warp's pieces of base ... base + n - 1.
template <class S>
LORRY_DEVICE void multiply_round(State<S>& state, int* sums, int base, int n) {
  const Pieces& pieces = state.x.pieces;
  PutSums<S> put(sums);
  for (int i = warp_index(); i < n; i += kDecodeWarps) {
    Int4 sum[S::kN] = {};
    const int begin = (base + i) * pieces.per;
    const int stop = S::kCut == Cut::scales ? begin + S::kUnit : pieces.end_of(begin);
    for (int c = begin; c < stop; c += S::kUnit) {
      multiply_unit<S>(sum, state.ring.next(), state.x);
      state.x.next();
    }
    put(sum);
  }
}

// A pass.
template <class S>
LORRY_DEVICE void multiply_pass(Chain<S>& chain, State<S>& state) {
  const Pieces& pieces = state.x.pieces;
  for (int base = 0; base < pieces.count; base += S::kRound) {
    int* sums = reinterpret_cast<int*>(shared_bytes() + state.rounds % 2 * kRoundBytes);
    const int left = pieces.count - base;
    const int n = left < S::kRound ? left : S::kRound;
    multiply_round<S>(state, sums, base, n);
    if (base == 0 && pieces.idle<S>()) state.ring.next();
    sync_threads();
    chain.take_turn(state.rounds);
    ++state.rounds;
    pieces.is_one<S>() ? chain.add_parts(sums, n) : chain.add_scales(sums, base, n);
  }
}

LORRY_DEVICE uint16_t bits_of(Act act, float x) {
  return act == Act::bf16 ? Bf16::to(x) : F16::to(x);
}

// v: of gate, then of up; as Chain's.
template <class S>
LORRY_DEVICE void store(const Chain<S>& chain, const float (&v)[2][S::kN], int block) {
  const QuantArgs& q = chain.q;
  const LinearArgs& a = q.linear;
  const bool glu = a.glu.y != nullptr;
  const int64_t column = int64_t{block} * kRowBlock + lane_index() / 2;
  if (column >= (glu ? a.glu.cols : a.out)) return;
  LORRY_UNROLL
  for (int n = 0; n < S::kN; ++n) {
    const int32_t row = chain.row(n) + lane_index() % 2;
    if (row >= chain.end) continue;
    const float scale = q.scale[row];
    if (glu) {
      static_cast<uint16_t*>(a.glu.y)[row * a.glu.pitch + column] =
          bits_of(a.act, gated(a.glu.activation, v[0][n] * scale, v[1][n] * scale));
    } else {
      a.y[row * a.y_pitch + column] = v[0][n] * scale;
    }
  }
}

// Rows first ... of the group, at most 8 kN, by a row block, or by those of gate and up.
template <class S>
LORRY_DEVICE void multiply_tile(const QuantArgs& q, State<S>& state, int block, int32_t first,
                                int32_t end, bool last) {
  const DecodeRing<S>& ring = state.ring;
  Chain<S> chain(q, first, end);
  float v[2][S::kN] = {};
  for (int i = 0; i < ring.passes.of_a_tile(); ++i) {
    chain.begin(ring.sides.at + state.side * ring.sides.bytes, i);
    state.side = state.side + 1 == ring.sides.count ? 0 : state.side + 1;
    multiply_pass<S>(chain, state);
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) {
      v[0][n] = i == 0 ? chain.f[n] : v[0][n];
      v[1][n] = chain.f[n];
    }
  }
  if (kTurns<S> && ring.passes.glu) v[0][0] = chain.held(0);
  if (last) let_next_start();
  store<S>(chain, v, block);
}

// grid: row blocks (with glu: of gate) by args.blocks, groups that have rows.
template <class S>
LORRY_KERNEL(kDecodeThreads, kOfAProcessor)
quant_decode_kernel(DecodeArgs args) {
  const QuantArgs& q = args.quant;
  const LinearArgs& a = q.linear;
  const WeightPlan& plan = a.plan;
  int group = 0;
  if (a.begin != nullptr) {
    wait_for_previous();
    group = group_with_rows(a, static_cast<int>(blockIdx.y));
    if (group < 0) return;
  }
  const Rows rows = rows_of(a, group);
  constexpr int kRows = 8 * S::kN;
  const bool glu = a.glu.y != nullptr;
  const auto all = static_cast<int>(((glu ? a.glu.cols : a.out) + kRowBlock - 1) / kRowBlock);
  const int first = static_cast<int>(blockIdx.x) * args.blocks;
  const int blocks = all - first < args.blocks ? all - first : args.blocks;
  const Passes passes{a.w + group * a.group_bytes,
                      static_cast<int>(plan.block_bytes()),
                      first,
                      blocks,
                      (rows.end - rows.begin + kRows - 1) / kRows,
                      glu};
  unsigned char* rings = shared_bytes() + kSumsBytes<S>;
  const auto offset = static_cast<int>(plan.scales_offset());
  const Sides sides{rings + kDecodeWarps * S::kRing, static_cast<int>(plan.block_bytes()) - offset,
                    offset, args.sides};
  const Pieces pieces(plan, S::kUnit);
  DecodeRing<S> ring(pieces, passes, sides, rings + warp_index() * S::kRing);
  State<S> state{ring, UnitRows<S>(pieces)};
  if (a.begin == nullptr) wait_for_previous();
  for (int b = 0; b < blocks; ++b) {
    for (int32_t r = rows.begin; r < rows.end; r += kRows) {
      if (b == 0 || passes.tiles > 1) state.x.begin(q, r, rows.end);
      multiply_tile<S>(q, state, first + b, r, rows.end, b + 1 == blocks && r + kRows >= rows.end);
    }
  }
}

int64_t side_bytes(const WeightPlan& p) { return p.block_bytes() - p.scales_offset(); }

// Passes whose scales and zero points are held: the one multiplied, those that a ring has begun to
// copy, and the last one, which other warps may not have ended before the first round has.
template <class S>
int32_t sides_of(const WeightPlan& p) {
  const int64_t piece = p.scales == 1 ? 1 : p.group / (S::kUnit * kChunk);  // units
  const int64_t pieces = p.scales == 1 ? 1 : p.scales / kDecodeWarps;       // of a warp, at least
  const int64_t units = pieces == 0 ? 1 : (pieces - 1) * piece + 1;  // the last piece may be short
  const int64_t in_round = S::kRound / kDecodeWarps * piece;
  if (units >= in_round + S::kPlaces) return 2;
  return static_cast<int32_t>(2 + ceil_div(S::kPlaces, units));
}

template <class S>
size_t shared_of(const WeightPlan& p) {
  return static_cast<size_t>(kSumsBytes<S> + kDecodeWarps * S::kRing +
                             sides_of<S>(p) * side_bytes(p));
}

// Row blocks of a block. A block costs as much at its beginning as so many bytes of weights. How
// often the device's places are taken over counts, and how evenly its processors are loaded.
int32_t blocks_of(const LinearArgs& a, int64_t row_blocks) {
  constexpr int32_t kMost = 8;
  constexpr int64_t kBegin = 12 << 10;
  const int64_t bytes = a.plan.block_bytes() * (a.glu.y != nullptr ? 2 : 1);
  const int64_t places = int64_t{kOfAProcessor} * a.processors;
  int32_t best = 1;
  int64_t least = INT64_MAX;
  for (int32_t n = 1; n <= kMost; ++n) {
    const int64_t blocks = ceil_div(row_blocks, n) * groups_with_rows(a);
    const int64_t turns =
        kOfAProcessor * ceil_div(blocks, places) + ceil_div(blocks, int64_t{a.processors});
    const int64_t cost = turns * (n * bytes + kBegin);
    if (cost >= least) continue;
    least = cost;
    best = n;
  }
  return best;
}

constexpr int kRing = 8192;

// f(shape): of the kernel for these rows.
template <class Load, int kUnit, Cut kCut, class F>
auto with_rows(const LinearArgs& a, F&& f) {
  const int64_t rows = expected_rows(a);
  if (rows <= 8) return f(DecodeShape<Load, kUnit, 1, kRing, kCut>{});
  if (rows <= 16) return f(DecodeShape<Load, kUnit, 2, kRing, kCut>{});
  return f(DecodeShape<Load, kUnit, 4, kRing, kCut>{});
}
template <class Load, int kUnit, class F>
auto with_units(const LinearArgs& a, F&& f) {
  const WeightPlan& p = a.plan;
  constexpr int kInputs = kUnit * kChunk;
  const int64_t units = p.chunks() / kUnit;
  const bool whole = p.chunks() % kUnit == 0;
  if (whole && p.scales == 1 && units > (kDecodeWarps - 1) * ceil_div(units, kDecodeWarps)) {
    return with_rows<Load, kUnit, Cut::one_scale>(a, f);
  }
  if (whole && p.scales >= kDecodeWarps && p.group == kInputs && p.half) {
    return with_rows<Load, kUnit, Cut::scales>(a, f);
  }
  if (p.scales == 1 || p.group % kInputs == 0) return with_rows<Load, kUnit, Cut::any>(a, f);
  return with_rows<Load, 1, Cut::any>(a, f);
}
template <class F>
auto with_shape(const LinearArgs& a, F&& f) {
  if (a.plan.values == Values::s4) return with_units<LoadS4, 4>(a, f);
  return with_units<LoadS8, 2>(a, f);
}

// With more rows the kernels for prompts are faster.
constexpr int64_t kDecodeRows = 32;

}  // namespace

bool is_quant_decode(const LinearArgs& a) {
  const bool quantised = a.plan.values == Values::s8 || a.plan.values == Values::s4;
  if (!quantised || expected_rows(a) > kDecodeRows) return false;
  constexpr size_t kMost = size_t{99} << 10;
  return with_shape(a, [&]<class S>(S) { return shared_of<S>(a.plan) <= kMost; });
}

void quant_decode(Stream s, const QuantArgs& q) {
  const LinearArgs& a = q.linear;
  const int64_t row_blocks = ceil_div(a.glu.y != nullptr ? a.glu.cols : a.out, kRowBlock);
  const int32_t blocks = blocks_of(a, row_blocks);
  const Grid grid{ceil_div(row_blocks, blocks), groups_with_rows(a)};
  with_shape(a, [&]<class S>(S) {
    start<DecodeArgs, quant_decode_kernel<S>>("quant_decode", grid, kDecodeThreads,
                                              shared_of<S>(a.plan), s,
                                              {q, blocks, sides_of<S>(a.plan)});
  });
}

}  // namespace lorry::cuda
