// Sums of the pieces of quant_decode.cu on their way, through shared memory, from the lanes that
// multiply to the threads that add them up, scale after scale.
#pragma once
#include "ops/cuda/quant.h"
#include "ops/cuda/quant_stream.h"

namespace lorry::cuda {

constexpr int kRoundBytes = kRoundTiles * kTileSums * static_cast<int>(sizeof(int));

// With at most 8 rows, most often one, the warps add in turn, a round each: the one that has the
// row would keep the others waiting, and it is the same processor's scheduler in all blocks.
template <class S>
constexpr bool kTurns = S::kN == 1;

// Of shared memory: two rounds of sums, then, where turns are taken, what has been added up: of a
// pass, of gate before that of up.
template <class S>
constexpr int kSumsBytes =
    2 * kRoundBytes + (kTurns<S> ? 2 * kDecodeThreads * static_cast<int>(sizeof(float)) : 0);

// Where the sums of a tile lie, so that neither writing nor reading has bank conflicts: of lane
// 4 g + q of mma, output g + 8 h, row 2 q (the next is behind it).
LORRY_DEVICE int place_of_sums(int g, int h, int q) {
  return q * 32 + ((g * 2 + h * 16) ^ (q * 8));
}

// put(sums): of the warp's pieces of a round, one after the other.
template <class S>
struct PutSums {
  int* at[2];

  LORRY_DEVICE explicit PutSums(int* sums) {
    LORRY_UNROLL
    for (int h = 0; h < 2; ++h) {
      at[h] = sums + warp_index() * S::kSums + place_of_sums(lane_index() / 4, h, lane_index() % 4);
    }
  }
  LORRY_DEVICE void operator()(const Int4 (&sum)[S::kN]) {
    LORRY_UNROLL
    for (int h = 0; h < 2; ++h) {
      LORRY_UNROLL
      for (int n = 0; n < S::kN; ++n) {
        *reinterpret_cast<Word2*>(at[h] + n * kTileSums) = {
            static_cast<uint32_t>(sum[n].v[2 * h]), static_cast<uint32_t>(sum[n].v[2 * h + 1])};
      }
      at[h] += kDecodeWarps * S::kSums;
    }
  }
};

// What a thread adds up: output lane / 2, row 2 turn + lane % 2 of each tile of 8 rows.
template <class S>
struct Chain {
  const QuantArgs& q;
  int32_t first, end;  // rows
  Side side;
  int output = lane_index() / 2;
  int slot = 0;  // of what is held
  int turn = 0;
  float f[S::kN] = {};

  LORRY_DEVICE Chain(const QuantArgs& args, int32_t first_row, int32_t end_row)
      : q(args), first(first_row), end(end_row), side(args.linear.plan, nullptr) {}
  // A pass.
  LORRY_DEVICE void begin(const unsigned char* shared_side, int pass) {
    side = Side(q.linear.plan, shared_side);
    if (S::kCut == Cut::scales) side.half = true;
    slot = pass;
    LORRY_UNROLL
    for (int n = 0; n < S::kN; ++n) f[n] = 0;
  }
  LORRY_DEVICE void take_turn(unsigned round) {
    const auto warp = static_cast<unsigned>(warp_index());
    turn = static_cast<int>(kTurns<S> ? (warp + round) % kDecodeWarps : warp);
  }
  // Of the warp's two of a tile the first.
  LORRY_DEVICE int32_t row(int tile) const { return first + 8 * tile + 2 * turn; }
  // What the thread whose turn it was has added up.
  LORRY_DEVICE float& held(int of_slot) const {
    auto* all = reinterpret_cast<float*>(shared_bytes() + 2 * kRoundBytes);
    return all[of_slot * kDecodeThreads + turn * 32 + lane_index()];
  }

  // The sums of scales base ... base + n - 1.
  LORRY_DEVICE void add_scales(const int* sums, int base, int n) {
    LORRY_UNROLL
    for (int t = 0; t < S::kN; ++t) {
      if (row(t) >= end) continue;
      if (kTurns<S>) f[t] = base > 0 ? held(slot) : 0.0F;
      const int* own = sums + t * kTileSums + place();
      int u = 0;
      if (side.zeros == nullptr) {
        for (; u + 8 <= n; u += 8) add<8>(own, base, u, t);
        for (; u + 4 <= n; u += 4) add<4>(own, base, u, t);
        for (; u < n; ++u) add<1>(own, base, u, t);
      } else {
        for (; u + 4 <= n; u += 4) add_with_zeros<4>(own, base, u, t);
        for (; u < n; ++u) add_with_zeros<1>(own, base, u, t);
      }
      if (kTurns<S>) held(slot) = f[t];
    }
  }
  // Those of the parts of the only scale.
  LORRY_DEVICE void add_parts(const int* sums, int n) {
    LORRY_UNROLL
    for (int t = 0; t < S::kN; ++t) {
      if (row(t) >= end) continue;
      uint32_t all = 0;
      for (int u = 0; u < n; ++u) {
        all += static_cast<uint32_t>(sums[u * S::kSums + t * kTileSums + place()]);
      }
      const bool zeros = side.zeros != nullptr;
      f[t] =
          fmaf(exact_sum<typename S::Load>(static_cast<int>(all), zeros ? side.zero(0, output) : 0,
                                           zeros ? inputs(t)[0] : 0),
               side.scale(0, output), 0.0F);
      if (kTurns<S>) held(slot) = f[t];
    }
  }

 private:
  LORRY_DEVICE int place() const { return turn * 32 + (lane_index() ^ (turn * 8)); }
  // Sums of xq, where there are zero points.
  LORRY_DEVICE const int32_t* inputs(int tile) const {
    const int32_t own = row(tile) + lane_index() % 2;
    return q.sums + (own < end ? own : end - 1);
  }
  template <int kCount>
  LORRY_DEVICE void add(const int* own, int base, int u, int t) {
    float scale[kCount];
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) scale[i] = side.scale(base + u + i, output);
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) {
      f[t] = fmaf(exact_sum<typename S::Load>(own[(u + i) * S::kSums], 0, 0), scale[i], f[t]);
    }
  }
  template <int kCount>
  LORRY_DEVICE void add_with_zeros(const int* own, int base, int u, int t) {
    float scale[kCount];
    int zero[kCount];
    int sum_of_x[kCount];
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) {
      scale[i] = side.scale(base + u + i, output);
      zero[i] = side.zero(base + u + i, output);
      sum_of_x[i] = inputs(t)[int64_t{base + u + i} * q.linear.rows];
    }
    LORRY_UNROLL
    for (int i = 0; i < kCount; ++i) {
      const float sum = exact_sum<typename S::Load>(own[(u + i) * S::kSums], zero[i], sum_of_x[i]);
      f[t] = fmaf(sum, scale[i], f[t]);
    }
  }
};

}  // namespace lorry::cuda
