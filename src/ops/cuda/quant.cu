// linear with int8 and int4 weights and x in bf16 or f16: which kernel, and the one for many rows
// where no other fits.
#include "ops/cuda/launch.h"
#include "ops/cuda/quant.h"

namespace lorry::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kN = 8;  // x 8 rows of a warp

// xq as the b operand; rows beyond the last are the last one's.
struct QuantRows {
  const int8_t* row[kN];

  LORRY_DEVICE QuantRows(const QuantArgs& q, int32_t first, int32_t end) {
    const int64_t pitch = quantised_pitch(q.linear.plan);
    LORRY_UNROLL
    for (int n = 0; n < kN; ++n) {
      const int32_t r = first + 8 * n + lane_index() / 4;
      row[n] = q.xq + (r < end ? r : end - 1) * pitch + lane_index() % 4 * 16;
    }
  }
  LORRY_DEVICE Word2 load(int n, int chunk) const {
    return *reinterpret_cast<const Word2*>(row[n] + chunk / 2 * 64 + chunk % 2 * 8);
  }
};

// Rows r ... of the group, at most 8 kN, times a row block: scale after scale.
template <class Load>
LORRY_DEVICE void multiply_tile(Float4 (&f)[kN], const QuantArgs& q, const unsigned char* block,
                                int32_t r, int32_t end) {
  const WeightPlan& plan = q.linear.plan;
  const Side side(plan, block + plan.scales_offset());
  const auto chunks = static_cast<int>(plan.chunks());
  const int per_scale = plan.scales == 1 ? chunks : plan.group / kChunk;
  const QuantRows x(q, r, end);
  for (int u = 0; u < plan.scales; ++u) {
    Int4 sum[kN] = {};
    const int stop = (u + 1) * per_scale < chunks ? (u + 1) * per_scale : chunks;
    for (int c = u * per_scale; c < stop; ++c) {
      const Word4 a = load_chunk<Load>(block + int64_t{c} * Load::kBytes);
      Word2 b[kN];
      LORRY_UNROLL
      for (int n = 0; n < kN; ++n) b[n] = x.load(n, c);
      LORRY_UNROLL
      for (int n = 0; n < kN; ++n) mma_s8(sum[n], a, b[n].x, b[n].y);
    }
    LORRY_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int o = lane_index() / 4 + 8 * h;
      const float scale = side.scale(u, o);
      const int zero = plan.zeros ? side.zero(u, o) : 0;
      LORRY_UNROLL
      for (int i = 0; i < 2 * kN; ++i) {
        const int32_t row = r + i / 2 * 8 + lane_index() % 4 * 2 + i % 2;
        const int inputs = plan.zeros && row < end ? q.sums[int64_t{u} * q.linear.rows + row] : 0;
        float& own = f[i / 2].v[2 * h + i % 2];
        own = fmaf(exact_sum<Load>(sum[i / 2].v[2 * h + i % 2], zero, inputs), scale, own);
      }
    }
  }
}

// A warp has a row block. grid: row blocks by kWarps, groups, row tiles.
template <class Load>
LORRY_KERNEL(32 * kWarps)
quant_prefill_kernel(QuantArgs q) {
  begin_kernel();
  const LinearArgs& a = q.linear;
  const Rows rows = rows_of(a, static_cast<int>(blockIdx.y));
  const int64_t at = int64_t{blockIdx.x} * kWarps + warp_index();
  if (at * kRowBlock >= a.out) return;
  const unsigned char* block = a.w + blockIdx.y * a.group_bytes + at * a.plan.block_bytes();
  const auto step = static_cast<int32_t>(8 * kN * gridDim.z);
  for (int32_t r = rows.begin + static_cast<int32_t>(8 * kN * blockIdx.z); r < rows.end;
       r += step) {
    Float4 f[kN] = {};
    multiply_tile<Load>(f, q, block, r, rows.end);
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

template <class Load>
void prefill(Stream s, const QuantArgs& q) {
  const LinearArgs& a = q.linear;
  const int64_t rows = ceil_div(a.rows, a.groups);
  const int64_t tiles = ceil_div(a.groups == 1 ? rows : 3 * rows, 8 * kN);
  const Grid grid{ceil_div(a.out, kRowBlock * kWarps), a.groups, tiles < 1024 ? tiles : 1024};
  start<QuantArgs, quant_prefill_kernel<Load>>("quant_prefill", grid, 32 * kWarps, 0, s, q);
}

}  // namespace

void linear_quant(Stream s, const QuantArgs& args) {
  QuantArgs q = args;
  const WeightPlan& plan = q.linear.plan;
  const bool few = is_quant_decode(q.linear);
  const bool whole = plan.scales == 1 || plan.group % kQuantised == 0;  // tiles of a scale
  q.wide = args.wide && whole && !few;
  quantise_rows(s, q);
  if (q.wide) return quant_wide(s, q);
  if (few) return quant_decode(s, q);
  plan.values == Values::s4 ? prefill<LoadS4>(s, q) : prefill<LoadS8>(s, q);
}

}  // namespace lorry::cuda
