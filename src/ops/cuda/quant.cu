// linear with int8 and int4 weights and x in bf16: rows of x are quantised, products are s8 x s8 on
// the tensor cores, and the sums of one scale are exact; so these linears have the CPU's bits.
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

struct LoadS8 {
  static constexpr int kBytes = kChunkValues;
  LORRY_DEVICE static Word4 load(const unsigned char* chunk) {
    return reinterpret_cast<const Word4*>(chunk)[lane_index()];
  }
};
struct LoadS4 {
  static constexpr int kBytes = kChunkValues / 2;
  LORRY_DEVICE static Word4 load(const unsigned char* chunk) {
    const Word2 w = reinterpret_cast<const Word2*>(chunk)[lane_index()];
    constexpr uint32_t kLow = 0x0f0f0f0fU;
    return {w.x & kLow, w.x >> 4 & kLow, w.y & kLow, w.y >> 4 & kLow};
  }
};

// xq of kN x 8 rows as the b operand; rows beyond the last are the last one's.
template <int kN>
struct QuantRows {
  const int8_t* row[kN];

  LORRY_DEVICE QuantRows(const QuantArgs& q, int32_t first, int32_t end) {
    const int64_t pitch = q.linear.plan.chunks() * kChunk;
    LORRY_UNROLL
    for (int n = 0; n < kN; ++n) {
      const int32_t r = first + 8 * n + lane_index() / 4;
      row[n] = q.xq + (r < end ? r : end - 1) * pitch + lane_index() % 4 * 8;
    }
  }
  LORRY_DEVICE Word2 load(int n, int chunk) const {
    return *reinterpret_cast<const Word2*>(row[n] + chunk * kChunk);
  }
};

// sum[s] += kTogether chunks from chunk c + s kTogether on; all are on their way at once.
template <class Load, int kN, int kTogether, int kSums>
LORRY_DEVICE void add_chunks(Int4 (&sum)[kSums][kN], const unsigned char* w, const QuantRows<kN>& x,
                             int c) {
  constexpr int kAll = kSums * kTogether;
  Word4 a[kAll];
  Word2 b[kAll][kN];
  LORRY_UNROLL
  for (int i = 0; i < kAll; ++i) {
    a[i] = Load::load(w + int64_t{c + i} * Load::kBytes);
    LORRY_UNROLL
    for (int n = 0; n < kN; ++n) b[i][n] = x.load(n, c + i);
  }
  LORRY_UNROLL
  for (int i = 0; i < kAll; ++i) {
    LORRY_UNROLL
    for (int n = 0; n < kN; ++n) mma_s8(sum[i / kTogether][n], a[i], b[i][n].x, b[i][n].y);
  }
}

template <class Load, int kN>
LORRY_DEVICE void multiply(Int4 (&sum)[1][kN], const unsigned char* w, const QuantRows<kN>& x,
                           int begin, int end) {
  constexpr int kTogether = kN <= 2 ? 8 : kN <= 4 ? 4 : 1;
  int c = begin;
  for (; c + kTogether <= end; c += kTogether) add_chunks<Load, kN, kTogether, 1>(sum, w, x, c);
  for (; c < end; ++c) add_chunks<Load, kN, 1, 1>(sum, w, x, c);
}

// The sums of a scale less its zero point times the inputs' sum. Wraps as the tensor cores do; what
// comes out is within range.
LORRY_DEVICE float exact_sum(int sum, int zero, int inputs) {
  return static_cast<float>(static_cast<int>(
      static_cast<uint32_t>(sum) - static_cast<uint32_t>(zero) * static_cast<uint32_t>(inputs)));
}

// What kCount scales of an output are, from scale u on; the last one again beyond it.
template <int kCount>
struct ScalesOf {
  float scale[kCount];
  int zero[kCount], inputs[kCount];

  LORRY_DEVICE ScalesOf(const QuantArgs& q, const unsigned char* block, int o, int32_t row, int u) {
    const WeightPlan& plan = q.linear.plan;
    const int last = plan.scales - 1;
    const auto place = [&](int i) { return (u + i < last ? u + i : last) * kRowBlock + o; };
    const int32_t* sums = q.sums + int64_t{row} * plan.scales;
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) inputs[i] = sums[u + i < last ? u + i : last];
    const unsigned char* scales = block + plan.scales_offset();
    if (plan.half) {
      uint16_t half[kCount];
      LORRY_UNROLL
      for (int i = 0; i < kCount; ++i)
        half[i] = reinterpret_cast<const uint16_t*>(scales)[place(i)];
      LORRY_UNROLL
      for (int i = 0; i < kCount; ++i) scale[i] = from_f16(half[i]);
    } else {
      LORRY_UNROLL
      for (int i = 0; i < kCount; ++i) scale[i] = reinterpret_cast<const float*>(scales)[place(i)];
    }
    const bool int8 = plan.values == Values::s8;
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) zero[i] = int8 ? 0 : 8;
    if (!plan.zeros) return;
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i)
      zero[i] = block[plan.zeros_offset() + place(i)] - (int8 ? 128 : 0);
  }
};

// f <- fma(sum less its zero point, scale, f) for output o of a row block, scale u.
LORRY_DEVICE float add_scaled(const QuantArgs& q, const unsigned char* block, int o, int32_t row,
                              int u, int sum, float f) {
  const ScalesOf<1> s(q, block, o, row, u);
  return fmaf(exact_sum(sum, s.zero[0], s.inputs[0]), s.scale[0], f);
}

// The same for scales base ... base + n - 1, in order; their sums are `step` apart.
LORRY_DEVICE float add_all_scaled(const QuantArgs& q, const unsigned char* block, int o,
                                  int32_t row, int base, int n, const int* sums, int step,
                                  float f) {
  constexpr int kCount = 8;
  for (int u = 0; u < n; u += kCount) {
    const ScalesOf<kCount> s(q, block, o, row, base + u);
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if (u + i >= n) break;
      f = fmaf(exact_sum(sums[(u + i) * step], s.zero[i], s.inputs[i]), s.scale[i], f);
    }
  }
  return f;
}

struct Rows {
  int32_t begin, end;
};
LORRY_DEVICE Rows rows_of(const LinearArgs& a, int group) {
  if (a.begin == nullptr) return {0, a.rows};
  return {a.begin[group], a.begin[group + 1]};
}

constexpr int kWarps = 4;

// Where the sums of a scale (or of a warp) lie: [16 rows of y ... 8 kN][kRowBlock].
template <int kN>
LORRY_DEVICE void put_sums(int* to, const Int4 (&sum)[kN]) {
  LORRY_UNROLL
  for (int n = 0; n < kN; ++n) {
    LORRY_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int row = 8 * n + lane_index() % 4 * 2 + i % 2;
      to[row * kRowBlock + lane_index() / 4 + i / 2 * 8] = sum[n].v[i];
    }
  }
}

// Scales of a round: their sums lie in shared memory at once.
template <int kN>
constexpr int kRoundScales = 64 / kN;

// The sums of scales base ... base + n - 1: each warp finds those of its share.
template <class Load, int kN>
LORRY_DEVICE void put_scales(int* shared, const WeightPlan& plan, const unsigned char* block,
                             const QuantRows<kN>& x, int base, int n) {
  constexpr int kSums = 8 * kN * kRowBlock;  // of a scale
  const auto chunks = static_cast<int>(plan.chunks());
  const int per_scale = plan.group / kChunk;
  const int last = base + n * (warp_index() + 1) / kWarps;
  int u = base + n * warp_index() / kWarps;
  // The usual groups of 128 inputs, some at a time.
  constexpr int kUsual = 128 / kChunk;
  constexpr int kTogether = kN <= 2 ? 4 : 2;
  while (per_scale == kUsual && u + kTogether <= last && (u + kTogether) * kUsual <= chunks) {
    Int4 sum[kTogether][kN] = {};
    add_chunks<Load, kN, kUsual, kTogether>(sum, block, x, u * kUsual);
    LORRY_UNROLL
    for (int i = 0; i < kTogether; ++i) put_sums<kN>(shared + (u + i - base) * kSums, sum[i]);
    u += kTogether;
  }
  for (; u < last; ++u) {
    const int begin = u * per_scale;
    const int end = begin + per_scale < chunks ? begin + per_scale : chunks;
    Int4 sum[1][kN] = {};
    multiply<Load, kN>(sum, block, x, begin, end);
    put_sums<kN>(shared + (u - base) * kSums, sum[0]);
  }
}

// Few rows: a block of kWarps warps has one row block. Each takes a part of a round's scales (one
// scale for all inputs: a part of its chunks), and what they find is added in order of the scales
// by the thread that owns the output. grid: row blocks, groups.
template <class Load, int kN>
LORRY_KERNEL(32 * kWarps)
quant_decode_kernel(QuantArgs q) {
  begin_kernel();
  static_assert(32 * kWarps == kRowBlock * 8);
  const LinearArgs& a = q.linear;
  int* shared = reinterpret_cast<int*>(shared_bytes());
  const Rows rows = rows_of(a, static_cast<int>(blockIdx.y));
  const unsigned char* block = a.w + blockIdx.y * a.group_bytes + blockIdx.x * a.plan.block_bytes();
  const auto chunks = static_cast<int>(a.plan.chunks());
  const bool one = a.plan.scales == 1;
  constexpr int kRound = kRoundScales<kN>;
  constexpr int kSums = 8 * kN * kRowBlock;  // of a scale
  const int output = static_cast<int>(threadIdx.x) % kRowBlock;
  const int first = static_cast<int>(threadIdx.x) / kRowBlock;
  const int64_t column = int64_t{blockIdx.x} * kRowBlock + output;
  for (int32_t r = rows.begin; r < rows.end; r += 8 * kN) {
    const QuantRows<kN> x(q, r, rows.end);
    float f[kN] = {};
    if (one) {
      Int4 sum[1][kN] = {};
      multiply<Load, kN>(sum, block, x, chunks * warp_index() / kWarps,
                         chunks * (warp_index() + 1) / kWarps);
      put_sums<kN>(shared + warp_index() * kSums, sum[0]);
      sync_threads();
      LORRY_UNROLL
      for (int j = 0; j < kN; ++j) {
        const int32_t row = r + first + 8 * j;
        if (row >= rows.end || column >= a.out) continue;
        uint32_t all = 0;
        for (int w = 0; w < kWarps; ++w) {
          all += static_cast<uint32_t>(shared[w * kSums + (first + 8 * j) * kRowBlock + output]);
        }
        f[j] = add_scaled(q, block, output, row, 0, static_cast<int>(all), 0.0F);
      }
      sync_threads();  // the sums have been read
    }
    for (int base = 0; !one && base < a.plan.scales; base += kRound) {
      const int n = a.plan.scales - base < kRound ? a.plan.scales - base : kRound;
      put_scales<Load, kN>(shared, a.plan, block, x, base, n);
      sync_threads();
      LORRY_UNROLL
      for (int j = 0; j < kN; ++j) {
        const int32_t row = r + first + 8 * j;
        if (row >= rows.end || column >= a.out) continue;
        const int* sums = shared + (first + 8 * j) * kRowBlock + output;
        f[j] = add_all_scaled(q, block, output, row, base, n, sums, kSums, f[j]);
      }
      sync_threads();  // the sums have been read
    }
    LORRY_UNROLL
    for (int j = 0; j < kN; ++j) {
      const int32_t row = r + first + 8 * j;
      if (row < rows.end && column < a.out) a.y[row * a.y_pitch + column] = f[j] * q.scale[row];
    }
  }
}

// Many rows: a warp has a row block and 8 kN rows, scale after scale. grid: row blocks by kWarps,
// groups, row tiles.
template <class Load, int kN>
LORRY_KERNEL(32 * kWarps)
quant_prefill_kernel(QuantArgs q) {
  begin_kernel();
  const LinearArgs& a = q.linear;
  const Rows rows = rows_of(a, static_cast<int>(blockIdx.y));
  const int64_t at = int64_t{blockIdx.x} * kWarps + warp_index();
  if (at * kRowBlock >= a.out) return;
  const unsigned char* block = a.w + blockIdx.y * a.group_bytes + at * a.plan.block_bytes();
  const auto chunks = static_cast<int>(a.plan.chunks());
  const int per_scale = a.plan.scales == 1 ? chunks : a.plan.group / kChunk;
  const auto step = static_cast<int32_t>(8 * kN * gridDim.z);
  for (int32_t r = rows.begin + static_cast<int32_t>(8 * kN * blockIdx.z); r < rows.end;
       r += step) {
    const QuantRows<kN> x(q, r, rows.end);
    Float4 f[kN] = {};
    for (int u = 0; u < a.plan.scales; ++u) {
      Int4 sum[1][kN] = {};
      const int begin = u * per_scale;
      const int end = begin + per_scale < chunks ? begin + per_scale : chunks;
      multiply<Load, kN>(sum, block, x, begin, end);
      LORRY_UNROLL
      for (int n = 0; n < kN; ++n) {
        LORRY_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int32_t row = r + 8 * n + lane_index() % 4 * 2 + i % 2;
          if (row >= rows.end) continue;
          f[n].v[i] =
              add_scaled(q, block, lane_index() / 4 + i / 2 * 8, row, u, sum[0][n].v[i], f[n].v[i]);
        }
      }
    }
    LORRY_UNROLL
    for (int n = 0; n < kN; ++n) {
      LORRY_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int32_t row = r + 8 * n + lane_index() % 4 * 2 + i % 2;
        const int64_t column = at * kRowBlock + lane_index() / 4 + i / 2 * 8;
        if (row < rows.end && column < a.out) {
          a.y[row * a.y_pitch + column] = f[n].v[i] * q.scale[row];
        }
      }
    }
  }
}

template <class Load, int kN>
void decode(Stream s, const QuantArgs& q) {
  const int scales = q.linear.plan.scales;
  const int slots = scales == 1 ? kWarps : scales < kRoundScales<kN> ? scales : kRoundScales<kN>;
  const size_t shared = sizeof(int) * kRowBlock * 8 * kN * static_cast<size_t>(slots);
  start<QuantArgs, quant_decode_kernel<Load, kN>>(
      "linear_quant", {ceil_div(q.linear.out, kRowBlock), q.linear.groups}, 32 * kWarps, shared, s,
      q);
}
template <class Load, int kN>
void prefill(Stream s, const QuantArgs& q, int64_t tiles) {
  start<QuantArgs, quant_prefill_kernel<Load, kN>>(
      "linear_quant", {ceil_div(q.linear.out, kRowBlock * kWarps), q.linear.groups, tiles},
      32 * kWarps, 0, s, q);
}

template <class Load>
void multiply_all(Stream s, const QuantArgs& q) {
  const LinearArgs& a = q.linear;
  const int64_t rows = ceil_div(a.rows, a.groups);
  const int64_t expected = a.groups == 1 ? rows : 2 * rows;
  if (expected <= 8) return decode<Load, 1>(s, q);
  if (expected <= 16) return decode<Load, 2>(s, q);
  if (expected <= 32) return decode<Load, 4>(s, q);
  const int64_t tiles = ceil_div(a.groups == 1 ? rows : 3 * rows, 64);
  prefill<Load, 8>(s, q, tiles < 1024 ? tiles : 1024);
}

}  // namespace

void linear_quant(Stream s, const QuantArgs& q) {
  quantise_rows(s, q);
  if (q.linear.plan.values == Values::s4) return multiply_all<LoadS4>(s, q);
  multiply_all<LoadS8>(s, q);
}

}  // namespace lorry::cuda
