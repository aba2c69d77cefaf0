// linear with int8 and int4 weights for few rows: weights stream through shared memory.
//
// A block has one row block. Its inputs are cut into pieces, most often those of one scale, which
// its warps share round by round; a warp has many units of chunks on their way at once, those of
// rounds to come among them. After a round a thread adds the sums of its output in order.
#include "ops/cuda/launch.h"
#include "ops/cuda/quant.h"

namespace lorry::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTileSums = kRowBlock * 8;  // of a piece and 8 rows
constexpr int kRoundTiles = 16;           // whose sums lie in shared memory at once
constexpr unsigned kRingBytes = 8192;     // of a warp

// kUnit: chunks that are copied and waited for at once, all of one piece. kN x 8 rows.
template <class Load_, int kUnit_, int kN_>
struct Shape {
  using Load = Load_;
  static constexpr int kUnit = kUnit_;
  static constexpr int kN = kN_;
  static constexpr int kPlace = kUnit * Load::kBytes;
  static constexpr int kPlaces = static_cast<int>(kRingBytes) / kPlace;
  static constexpr int kRound = kRoundTiles / kN;  // pieces
  static constexpr int kSums = kTileSums * kN;
};

// Where the sums of a tile lie, so that neither writing nor reading has bank conflicts: of lane
// 4 g + q of mma, output g + 8 h, row 2 q (the next is behind it).
LORRY_DEVICE int place_of_sums(int g, int h, int q) {
  return q * 32 + ((g * 2 + h * 16) ^ (q * 8));
}

// With one scale: a piece for each warp, whose sums are added as they are.
struct Pieces {
  int chunks;  // of the row block
  int per;     // chunks of a piece
  int count;
  bool one;

  LORRY_DEVICE Pieces(const WeightPlan& p, int unit)
      : chunks(static_cast<int>(p.chunks())), per(p.group / kChunk), count(p.scales) {
    one = p.scales == 1;
    if (!one) return;
    count = kWarps;
    per = (chunks + kWarps * unit - 1) / (kWarps * unit) * unit;
  }
  LORRY_DEVICE int end_of(int first) const { return first + per < chunks ? first + per : chunks; }
};

// The chunks of a warp, which has every kWarps-th piece, a unit after the other.
template <class S>
struct Walk {
  int chunk;  // of the unit
  int end;    // of its piece

  LORRY_DEVICE explicit Walk(const Pieces& p)
      : chunk(warp_index() * p.per), end(p.end_of(warp_index() * p.per)) {}
  LORRY_DEVICE bool over(const Pieces& p) const { return chunk >= p.chunks; }
  LORRY_DEVICE void next(const Pieces& p) {
    chunk += S::kUnit;
    if (chunk < end) return;
    chunk = end + (kWarps - 1) * p.per;
    end = p.end_of(chunk);
  }
};

// The weights of a warp on their way.
template <class S>
struct Ring {
  const Pieces& pieces;
  unsigned char* places;      // of the lane, as all that follows
  const unsigned char* from;  // first chunk
  Walk<S> walk;
  unsigned place = 0;  // bytes

  LORRY_DEVICE Ring(const Pieces& p, unsigned char* places_, const unsigned char* w)
      : pieces(p), places(places_ + lane_index() * 16), from(w + lane_index() * 16), walk(p) {
    sync_warp();  // what was in the places has been read
    for (unsigned i = 0; i < S::kPlaces - 1; ++i) copy(i * S::kPlace);
  }
  // The next unit, until the call after.
  LORRY_DEVICE const unsigned char* next() {
    wait_copies<S::kPlaces - 2>();
    sync_warp();  // the lanes' copies are there for all, and the last unit has been read
    const unsigned char* unit = places - lane_index() * 16 + place;
    copy((place + kRingBytes - S::kPlace) % kRingBytes);
    place = (place + S::kPlace) % kRingBytes;
    return unit;
  }

 private:
  LORRY_DEVICE void copy(unsigned to) {
    if (!walk.over(pieces)) {
      const unsigned char* unit = from + walk.chunk * S::Load::kBytes;
      const int left = (walk.end - walk.chunk) * S::Load::kBytes - lane_index() * 16;
      LORRY_UNROLL
      for (int b = 0; b < S::kPlace; b += 512) {
        if (S::kPlace < 512 && lane_index() * 16 >= S::kPlace) break;
        if (b < left) copy_async(places + to + b, unit + b);
      }
      walk.next(pieces);
    }
    commit_copies();
  }
};

LORRY_DEVICE Word4 half_pair(const int8_t* at) {
  const Word2 w = *reinterpret_cast<const Word2*>(at);
  return {w.x, w.y, 0, 0};
}

// xq of kN x 8 rows as the b operand: of a unit. Rows beyond the last are the last one's.
template <class S>
struct UnitRows {
  static constexpr int kPairs = (S::kUnit + 1) / 2;
  const int8_t* row[S::kN];
  Word4 pair[kPairs][S::kN] = {};  // of two chunks; of a unit of one chunk half is used

  LORRY_DEVICE UnitRows(const QuantArgs& q, int32_t first, int32_t end) {
    const int64_t pitch = quantised_pitch(q.linear.plan);
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) {
      const int32_t r = first + 8 * n + lane_index() / 4;
      row[n] = q.xq + (r < end ? r : end - 1) * pitch + lane_index() % 4 * 16;
    }
  }
  LORRY_DEVICE void load(int chunk) {
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) {
      if constexpr (S::kUnit == 1) {
        pair[0][n] = half_pair(row[n] + chunk / 2 * 64 + chunk % 2 * 8);
      } else {
        LORRY_UNROLL
        for (int p = 0; p < kPairs; ++p) {
          pair[p][n] = *reinterpret_cast<const Word4*>(row[n] + chunk * kChunk + p * 64);
        }
      }
    }
  }
};

// Beyond the last chunk x is zero, and it does not matter what the weights are.
template <class S>
LORRY_DEVICE void multiply_unit(Int4 (&sum)[S::kN], const unsigned char* unit,
                                const UnitRows<S>& x) {
  LORRY_UNROLL
  for (int c = 0; c < S::kUnit; ++c) {
    const Word4 a = load_chunk<typename S::Load>(unit + c * S::Load::kBytes);
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) {
      const Word4& b = x.pair[c / 2][n];
      c % 2 == 0 ? mma_s8(sum[n], a, b.x, b.y) : mma_s8(sum[n], a, b.z, b.w);
    }
  }
}

template <int kN>
LORRY_DEVICE void put_sums(int* to, const Int4 (&sum)[kN]) {
  LORRY_UNROLL
  for (int n = 0; n < kN; ++n) {
    LORRY_UNROLL
    for (int h = 0; h < 2; ++h) {
      int* at = to + n * kTileSums + place_of_sums(lane_index() / 4, h, lane_index() % 4);
      *reinterpret_cast<Word2*>(at) = {static_cast<uint32_t>(sum[n].v[2 * h]),
                                       static_cast<uint32_t>(sum[n].v[2 * h + 1])};
    }
  }
}

// What a thread adds up: output lane / 2, row 2 warp + lane % 2 of each tile of 8 rows.
template <class S>
struct Chain {
  Side side;
  const int32_t* inputs[S::kN];  // sums of xq, where there are zero points
  bool there[S::kN];             // the warp has a row
  int output, place, rows;
  float f[S::kN];

  LORRY_DEVICE Chain(const QuantArgs& q, const unsigned char* shared_side, int32_t first,
                     int32_t end)
      : side(q.linear.plan, shared_side) {
    rows = q.linear.rows;
    output = lane_index() / 2;
    place = warp_index() * 32 + (lane_index() ^ (warp_index() * 8));
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) {
      const int32_t row = first + 8 * n + 2 * warp_index();
      there[n] = row < end;
      const int32_t own = row + lane_index() % 2;
      inputs[n] = q.sums + (own < end ? own : end - 1);
      f[n] = 0;
    }
  }

  // The sums of scales base ... base + n - 1.
  LORRY_DEVICE void add_scales(const int* sums, int base, int n) {
    constexpr int kTogether = 8;
    LORRY_UNROLL
    for (int t = 0; t < S::kN; ++t) {
      if (!there[t]) continue;
      const int* own = sums + t * kTileSums + place;
      int u = 0;
      for (; u + kTogether <= n; u += kTogether) add<kTogether>(own, base, u, t);
      for (; u < n; ++u) add<1>(own, base, u, t);
    }
  }
  // Those of the parts of the only scale.
  LORRY_DEVICE void add_parts(const int* sums, int n) {
    LORRY_UNROLL
    for (int t = 0; t < S::kN; ++t) {
      if (!there[t]) continue;
      uint32_t all = 0;
      for (int u = 0; u < n; ++u) {
        all += static_cast<uint32_t>(sums[u * S::kSums + t * kTileSums + place]);
      }
      const bool zeros = side.zeros != nullptr;
      f[t] =
          fmaf(exact_sum<typename S::Load>(static_cast<int>(all), zeros ? side.zero(0, output) : 0,
                                           zeros ? inputs[t][0] : 0),
               side.scale(0, output), 0.0F);
    }
  }

 private:
  template <int kCount>
  LORRY_DEVICE void add(const int* own, int base, int u, int t) {
    float scale[kCount];
    int zero[kCount] = {};
    int sum_of_x[kCount] = {};
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) scale[i] = side.scale(base + u + i, output);
    if (side.zeros != nullptr) {
      LORRY_UNROLL
      for (int i = 0; i < kCount; ++i) {
        zero[i] = side.zero(base + u + i, output);
        sum_of_x[i] = inputs[t][int64_t{base + u + i} * rows];
      }
    }
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const float sum = exact_sum<typename S::Load>(own[(u + i) * S::kSums], zero[i], sum_of_x[i]);
      f[t] = fmaf(sum, scale[i], f[t]);
    }
  }
};

template <class S>
LORRY_DEVICE void store(const QuantArgs& q, const Chain<S>& chain, int32_t first, int32_t end) {
  const LinearArgs& a = q.linear;
  const int64_t column = int64_t{blockIdx.x} * kRowBlock + chain.output;
  if (column >= a.out) return;
  LORRY_UNROLL
  for (int n = 0; n < S::kN; ++n) {
    const int32_t row = first + 8 * n + 2 * warp_index() + lane_index() % 2;
    if (row < end) a.y[row * a.y_pitch + column] = chain.f[n] * q.scale[row];
  }
}

// Of the block, in shared memory: two rounds of sums, the warps' rings, scales and zero points.
constexpr int kRoundBytes = kRoundTiles * kTileSums * static_cast<int>(sizeof(int));
constexpr int kFixedBytes = 2 * kRoundBytes + kWarps * static_cast<int>(kRingBytes);

// Rows first ... of the group, at most 8 kN. turn: rounds so far.
template <class S>
LORRY_DEVICE void multiply_tile(const QuantArgs& q, const Pieces& pieces, Ring<S>& ring,
                                int32_t first, int32_t end, int& turn) {
  unsigned char* shared = shared_bytes();
  UnitRows<S> x(q, first, end);
  Walk<S> ahead(pieces);  // whose x is loaded
  if (!ahead.over(pieces)) x.load(ahead.chunk);
  Chain<S> chain(q, shared + kFixedBytes, first, end);
  for (int base = 0; base < pieces.count; base += S::kRound) {
    int* sums = reinterpret_cast<int*>(shared + turn % 2 * kRoundBytes);
    ++turn;
    const int left = pieces.count - base;
    const int n = left < S::kRound ? left : S::kRound;
    for (int i = warp_index(); i < n; i += kWarps) {
      Int4 sum[S::kN] = {};
      const int begin = (base + i) * pieces.per;
      const int stop = pieces.end_of(begin);
      for (int c = begin; c < stop; c += S::kUnit) {
        multiply_unit<S>(sum, ring.next(), x);
        ahead.next(pieces);
        if (!ahead.over(pieces)) x.load(ahead.chunk);
      }
      put_sums<S::kN>(sums + i * S::kSums, sum);
    }
    wait_copies<S::kPlaces - 1>();  // scales and zero points, which came first
    sync_threads();
    if (pieces.one) {
      chain.add_parts(sums, n);
    } else {
      chain.add_scales(sums, base, n);
    }
  }
  let_next_start();
  store<S>(q, chain, first, end);
}

// grid: row blocks, groups that have rows.
template <class S>
LORRY_KERNEL(kThreads)
quant_decode_kernel(QuantArgs q) {
  const LinearArgs& a = q.linear;
  const WeightPlan& plan = a.plan;
  int group = 0;
  if (a.begin != nullptr) {
    wait_for_previous();
    group = group_with_rows(a, static_cast<int>(blockIdx.y));
    if (group < 0) return;
  }
  const unsigned char* block = a.w + group * a.group_bytes + blockIdx.x * plan.block_bytes();
  unsigned char* shared = shared_bytes();
  unsigned char* places = shared + 2 * kRoundBytes + warp_index() * static_cast<int>(kRingBytes);
  const auto side = static_cast<int>(plan.block_bytes() - plan.scales_offset());
  for (int at = static_cast<int>(threadIdx.x) * 16; at < side; at += kThreads * 16) {
    copy_async(shared + kFixedBytes + at, block + plan.scales_offset() + at);
  }
  commit_copies();
  const Pieces pieces(plan, S::kUnit);
  int turn = 0;
  int32_t r = 0;
  Rows rows{};
  do {
    Ring<S> ring(pieces, places, block);
    if (turn == 0) {
      if (a.begin == nullptr) wait_for_previous();
      rows = rows_of(a, group);
      r = rows.begin;
    }
    multiply_tile<S>(q, pieces, ring, r, rows.end, turn);
    r += 8 * S::kN;
  } while (r < rows.end);
}

template <class Load, int kUnit, int kN>
void decode(Stream s, const QuantArgs& q, size_t shared) {
  const LinearArgs& a = q.linear;
  const Grid grid{ceil_div(a.out, kRowBlock), groups_with_rows(a)};
  start<QuantArgs, quant_decode_kernel<Shape<Load, kUnit, kN>>>("quant_decode", grid, kThreads,
                                                                shared, s, q);
}

template <class Load, int kUnit>
void decode_rows(Stream s, const QuantArgs& q, size_t shared) {
  const int64_t rows = expected_rows(q.linear);
  if (rows <= 8) return decode<Load, kUnit, 1>(s, q, shared);
  if (rows <= 16) return decode<Load, kUnit, 2>(s, q, shared);
  decode<Load, kUnit, 4>(s, q, shared);
}

template <class Load, int kUnit>
void decode_units(Stream s, const QuantArgs& q, size_t shared) {
  const WeightPlan& plan = q.linear.plan;
  if (plan.scales == 1 || plan.group % (kUnit * kChunk) == 0) {
    return decode_rows<Load, kUnit>(s, q, shared);
  }
  decode_rows<Load, 1>(s, q, shared);
}

}  // namespace

bool quant_decode(Stream s, const QuantArgs& q) {
  const WeightPlan& plan = q.linear.plan;
  constexpr size_t kMost = size_t{99} << 10;
  const size_t shared =
      kFixedBytes + static_cast<size_t>(plan.block_bytes() - plan.scales_offset());
  if (shared > kMost) return false;
  if (plan.values == Values::s4) {
    decode_units<LoadS4, 4>(s, q, shared);
  } else {
    decode_units<LoadS8, 2>(s, q, shared);
  }
  return true;
}

}  // namespace lorry::cuda
