// attention over keys and values in f32 or int8, products in f32: a warp a row and head, 32 keys at
// a time. For exactness and small caches; it does not use the tensor cores.
#include "ops/cuda/attend.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/numbers.h"

namespace lorry::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kColumns = 8;  // of a lane: head_dim <= 256

LORRY_DEVICE float scale_of(const float*, int, int) { return 1.0F; }
LORRY_DEVICE float scale_of(const int8_t* block, int head_dim, int token) {
  return reinterpret_cast<const float*>(block + kTokens * head_dim)[token];
}

// grid: tiles, heads by kWarps. shared: of each warp q [head_dim] and 32 probabilities.
template <class T, class O>
LORRY_KERNEL(32 * kWarps)
attention_plain_kernel(AttentionArgs a) {
  begin_kernel();
  const AttentionTile tile = a.tiles[blockIdx.x];
  const auto head = static_cast<int>(blockIdx.y) * kWarps + warp_index();
  if (head >= a.heads) return;
  const int d = a.head_dim;
  float* q = reinterpret_cast<float*>(shared_bytes()) + warp_index() * (d + 32);
  float* probs = q + d;
  const float* from = a.q + tile.row * a.q_pitch + int64_t{head} * d;
  for (int i = lane_index(); i < d; i += 32) q[i] = from[i];
  const int kv_head = head / (a.heads / a.kv_heads);
  const int low = a.window > 0 && tile.position >= a.window ? tile.position - a.window + 1 : 0;
  const float scale = 1.0F / sqrtf(static_cast<float>(d));
  const auto block_at = [&](const unsigned char* cache, int key) {
    const int32_t block = a.table[int64_t{tile.sequence} * a.max_blocks + key / kTokens];
    return reinterpret_cast<const T*>(cache +
                                      (int64_t{block} * a.kv_heads + kv_head) * a.block_bytes);
  };
  RowState state{-INFINITY, 0};
  float o[kColumns] = {};
  for (int first = low / 32 * 32; first <= tile.position; first += 32) {
    sync_warp();  // q is written, the last probabilities have been read
    const int key = first + lane_index();
    const bool seen = key >= low && key <= tile.position;
    float x = -INFINITY;
    if (seen) {
      const T* block = block_at(a.k, key);
      const T* k = block + key % kTokens * d;
      float dot = 0;
      for (int i = 0; i < d; ++i) dot = fmaf(q[i], widen(k[i]), dot);
      x = dot * scale_of(block, d, key % kTokens) * scale;
    }
    const float most = warp_max(x);
    const float prob = seen ? expf(x - most) : 0.0F;
    const RowState part{most, warp_sum(prob)};
    probs[lane_index()] = prob;
    sync_warp();  // probabilities are written
    const Merge m = merge_states(state, part);
    float sum[kColumns] = {};
    for (int j = 0; j < 32; ++j) {
      if (first + j < low || first + j > tile.position) continue;
      const T* block = block_at(a.v, first + j);
      const float p = probs[j] * scale_of(block, d, (first + j) % kTokens);
      const T* v = block + (first + j) % kTokens * d;
      LORRY_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        const int i = 32 * c + lane_index();
        if (i < d) sum[c] = fmaf(p, widen(v[i]), sum[c]);
      }
    }
    LORRY_UNROLL
    for (int c = 0; c < kColumns; ++c) o[c] = m(o[c], sum[c]);
  }
  O* to = static_cast<O*>(a.o) + tile.row * a.o_pitch + int64_t{head} * d;
  LORRY_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    const int i = 32 * c + lane_index();
    if (i < d) narrow(to[i], o[c] / state.sum);
  }
}

}  // namespace

void attention_plain(Stream s, const AttentionArgs& a, KvType type, Act act) {
  const Grid grid{a.n_tiles, ceil_div(a.heads, kWarps)};
  constexpr int kThreads = 32 * kWarps;
  const size_t shared = sizeof(float) * kWarps * static_cast<size_t>(a.head_dim + 32);
  const char* name = "attention";
  if (type == KvType::f32) {
    return start<AttentionArgs, attention_plain_kernel<float, float>>(name, grid, kThreads, shared,
                                                                      s, a);
  }
  with_act(act, [&](auto o) {
    start<AttentionArgs, attention_plain_kernel<int8_t, decltype(o)>>(name, grid, kThreads, shared,
                                                                      s, a);
  });
}

}  // namespace lorry::cuda
