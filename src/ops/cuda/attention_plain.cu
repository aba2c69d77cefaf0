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

// Keys and values of the sequence and KV head that a warp works on.
template <class T>
struct Cached {
  const AttentionArgs& a;
  const AttentionTile& tile;
  int kv_head, low;  // low: the first key that the row sees; the last is its own

  LORRY_DEVICE bool sees(int key) const { return key >= low && key <= tile.position; }
  LORRY_DEVICE const T* block(const unsigned char* cache, int key) const {
    const int32_t block = a.table[int64_t{tile.sequence} * a.max_blocks + key / kTokens];
    return reinterpret_cast<const T*>(cache +
                                      (int64_t{block} * a.kv_heads + kv_head) * a.block_bytes);
  }
  LORRY_DEVICE float score(const float* q, int key) const {
    const T* keys = block(a.k, key);
    const T* k = keys + key % kTokens * a.head_dim;
    float dot = 0;
    for (int i = 0; i < a.head_dim; ++i) dot = fmaf(q[i], widen(k[i]), dot);
    return dot * scale_of(keys, a.head_dim, key % kTokens);
  }
  // sum += the values of keys first ... first + 31, each times its probability; a lane every 32nd
  // column.
  LORRY_DEVICE void add_values(float (&sum)[kColumns], const float* probs, int first) const {
    for (int j = 0; j < 32; ++j) {
      if (!sees(first + j)) continue;
      const T* values = block(a.v, first + j);
      const float p = probs[j] * scale_of(values, a.head_dim, (first + j) % kTokens);
      const T* v = values + (first + j) % kTokens * a.head_dim;
      LORRY_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        const int i = 32 * c + lane_index();
        if (i < a.head_dim) sum[c] = fmaf(p, widen(v[i]), sum[c]);
      }
    }
  }
};

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
  const int low = a.window > 0 && tile.position >= a.window ? tile.position - a.window + 1 : 0;
  const Cached<T> cached{a, tile, head / (a.heads / a.kv_heads), low};
  const float scale = score_scale(d);
  RowState state{-INFINITY, 0};
  float o[kColumns] = {};
  for (int first = low / 32 * 32; first <= tile.position; first += 32) {
    sync_warp();  // q is written, the last probabilities have been read
    const int key = first + lane_index();
    const bool seen = cached.sees(key);
    const float x = seen ? cached.score(q, key) * scale : -INFINITY;
    const float most = warp_max(x);
    const float prob = seen ? power_of_2(x - most) : 0.0F;
    const RowState part{most, warp_sum(prob)};
    probs[lane_index()] = prob;
    sync_warp();  // probabilities are written
    const Merge m = merge_states(state, part);
    float sum[kColumns] = {};
    cached.add_values(sum, probs, first);
    LORRY_UNROLL
    for (int c = 0; c < kColumns; ++c) o[c] = m(o[c], sum[c]);
  }
  O* to = static_cast<O*>(a.o) + tile.row * a.o_pitch + int64_t{head} * d;
  LORRY_UNROLL
  for (int c = 0; c < kColumns; ++c) {
    const int i = 32 * c + lane_index();
    if (i < d) narrow(to[i], o[c] * (1.0F / state.sum));
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
