// attention of few tiles, as in decode: a block a unit of keys. What it reads is found and asked
// for before the queries are there.
#pragma once
#include "ops/cuda/attention_tile.h"

namespace lorry::cuda {

constexpr int kWarps = kTilesOfBlock;  // of a block, here and in prompts
constexpr int kScoreBytes = sizeof(Float4) * kKeyTiles * 32;

// What a thread of unit_kernel has of a unit, in shared memory: its own part of the keys of its
// warp's block and of the values of its warp's columns. Nobody else reads it.
template <int kC>
struct OwnUnit {
  static constexpr int kBlocks = kUnitKeys / kTokens;
  static_assert(kBlocks == kWarps);
  static constexpr int kKeys = kKeyTiles / kWarps * kC;
  static constexpr int kColumns = (kC + kWarps - 1) / kWarps;  // of 32
  static constexpr int kBytes = (kKeys + kColumns * 2 * kBlocks) * 32 * kWarps * 16;

  const Place& p;
  int first, low, high;
  unsigned char* memory;

  LORRY_DEVICE unsigned char* part(int i) const {
    return memory + (i * 32 * kWarps + static_cast<int>(threadIdx.x)) * 16;
  }
  LORRY_DEVICE unsigned char* key_part(int j, int c) const { return part(j % 2 * kC + c); }
  LORRY_DEVICE unsigned char* value_part(int b, int pair, int c) const {
    return part(kKeys + (c / kWarps * kBlocks + b) * 2 + pair / 4);
  }
  LORRY_DEVICE Word4 key(int j, int c) const {
    return *reinterpret_cast<const Word4*>(key_part(j, c));
  }
  LORRY_DEVICE Word4 values(int b, int pair, int c) const {
    return *reinterpret_cast<const Word4*>(value_part(b, pair, c));
  }

  // Starts the copies; place: where the unit's blocks of this head begin.
  LORRY_DEVICE void copy(const AttentionArgs& a, const int64_t (&place)[kBlocks],
                         int64_t own_place) const {
    const auto width = static_cast<int>(head_width(a.head_dim));
    LORRY_UNROLL
    for (int j = 0; j < 2; ++j) {
      const unsigned char* row = a.k + own_place + (j * 8 + p.g) * width * 2;
      LORRY_UNROLL
      for (int c = 0; c < kC; ++c) {
        const int i = 32 * c + 8 * p.q;
        copy_async(key_part(j, c), row + (i < width ? 2 * i : 0), i >= width);
      }
    }
    LORRY_UNROLL
    for (int n = 0; n < kColumns; ++n) {
      const int c = warp_index() + n * kWarps;
      const int i = 32 * c + 4 * p.g;
      LORRY_UNROLL
      for (int b = 0; b < 2 * kBlocks; ++b) {
        const int pair = p.q + b % 2 * 4;
        const unsigned char* row = a.v + place[b / 2] + pair * width * 4;
        copy_async(value_part(b / 2, pair, c), row + (i < width ? 4 * i : 0), i >= width);
      }
    }
    commit_copies();
  }
};

// Where most tiles have all their rows: the first 8. All of a row is asked for at once.
constexpr int kFewQueries = 8;
template <class T, int kC>
LORRY_DEVICE void load_few_queries(Query<kC>& query, const float* row, int q) {
  Word4 x[kC][2];
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    x[c][0] = *reinterpret_cast<const Word4*>(row + 32 * c + 8 * q);
    x[c][1] = *reinterpret_cast<const Word4*>(row + 32 * c + 8 * q + 4);
  }
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    LORRY_UNROLL
    for (int h = 0; h < 2; ++h) {
      const Word4& w = x[c][h];
      query.t[c][h] = {T::pack(as_float(w.x), as_float(w.y)), 0,
                       T::pack(as_float(w.z), as_float(w.w)), 0};
    }
  }
}
template <int kC>
LORRY_DEVICE bool are_few_queries(const AttentionArgs& a, const Place& p) {
  return p.rows <= kFewQueries && a.head_dim == 32 * kC && a.q_pitch % 4 == 0 &&
         reinterpret_cast<uintptr_t>(a.q) % 16 == 0;
}

// By the block's warps: each makes a part of the scores, and from all of them a part of the
// columns.
template <class T, int kC>
LORRY_DEVICE void attend_together(const Query<kC>& query, const AttentionArgs& a, const Place& p,
                                  const OwnUnit<kC>& unit, float scale) {
  constexpr int kOwnTiles = kKeyTiles / kWarps;
  auto* shared = reinterpret_cast<Float4*>(shared_bytes());
  Float4 own[kOwnTiles];
  score<T, kOwnTiles>(own, query, unit, warp_index() * kOwnTiles);
  LORRY_UNROLL
  for (int i = 0; i < kOwnTiles; ++i) {
    shared[(warp_index() * kOwnTiles + i) * 32 + lane_index()] = own[i];
  }
  sync_threads();
  if (warp_index() >= kC) return;
  Float4 s[kKeyTiles];
  LORRY_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) s[j] = shared[j * 32 + lane_index()];
  RowState state[2] = {soften<false>(s, a, p, 0, unit.first, scale), {}};
  if (p.rows > kFewQueries) state[1] = soften<false>(s, a, p, 1, unit.first, scale);
  const int slot = p.tile.unit - lowest_key(a, p.tile.position) / kUnitKeys;
  for (int c = warp_index(); c < kC; c += kWarps) {
    Float4 o[4] = {};
    LORRY_UNROLL
    for (int b = 0; b < kUnitKeys / kTokens; ++b) {
      add_values<T, false>(o, pack_block<T>(s, b), unit, b, c);
    }
    store_part(o, state, a, p, slot, c);
  }
}

// Row `row` of a tile from its units' results, by kMergers lanes. All loads of some units are on
// their way together.
constexpr int kMergers = 16;
template <class T, int kC>
LORRY_DEVICE void merge_row(const AttentionArgs& a, const Place& p, int row) {
  constexpr int kAhead = kC <= 4 ? 4 : 2;        // units
  constexpr int kElements = 32 * kC / kMergers;  // of a lane
  const auto width = static_cast<int>(head_width(a.head_dim));
  const int n = p.tile.n_units;
  const int lane = lane_index() % kMergers;
  RowState state{};
  float o[kElements];
  for (int first = 0; first < n; first += kAhead) {
    RowState states[kAhead];
    float values[kAhead][kElements];
    LORRY_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      const float* unit = result_row(a, p, first + u < n ? first + u : n - 1, row);
      states[u] = {load_fresh(unit + width), load_fresh(unit + width + 1)};
      LORRY_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int i = lane + e * kMergers;
        values[u][e] = load_fresh(unit + (i < width ? i : 0));
      }
    }
    LORRY_UNROLL
    for (int u = 0; u < kAhead; ++u) {
      if (first + u >= n) break;
      const bool fresh = first + u == 0;
      const Merge m = fresh ? Merge{} : merge_states(state, states[u]);
      if (fresh) state = states[u];
      LORRY_UNROLL
      for (int e = 0; e < kElements; ++e) o[e] = fresh ? values[u][e] : m(o[e], values[u][e]);
    }
  }
  uint16_t* to = output_row(a, p, row);
  LORRY_UNROLL
  for (int e = 0; e < kElements; ++e) {
    const int i = lane + e * kMergers;
    if (i < a.head_dim) to[i] = T::to(o[e] * (1.0F / state.sum));
  }
}

// Whether this block is the last one that comes here of a tile and a head. Its threads then see
// what the others have written before; and the count is 0 again.
LORRY_DEVICE bool is_last(const AttentionArgs& a, const Place& p) {
  int32_t* count = a.counts + int64_t{p.tile.first_slot} * a.kv_heads * a.head_tiles + p.index;
  auto* shared = reinterpret_cast<int32_t*>(shared_bytes());
  sync_threads();
  if (threadIdx.x == 0) {
    fence();
    shared[0] = add_atomic(count, 1) == p.tile.n_units - 1 ? 1 : 0;
    if (shared[0] != 0) {
      fence();
      *count = 0;
    }
  }
  sync_threads();
  return shared[0] != 0;
}

// Asks for a block of keys and values by a warp; what this step has written of them is asked for
// too early, and found where it was put.
LORRY_DEVICE void prefetch_block(const AttentionArgs& a, int64_t place) {
  constexpr int kLine = 128;
  for (int64_t at = lane_index() * kLine; at < a.block_bytes; at += 32 * kLine) {
    prefetch(a.k + place + at);
    prefetch(a.v + place + at);
  }
}

// A block a unit; the last one of a tile merges them. grid: units, (KV head, head tile). Where
// things lie is found out before the queries are there.
template <class T, int kC>
LORRY_KERNEL(32 * kWarps)
unit_kernel(AttentionArgs a) {
  let_next_start();
  using Unit = OwnUnit<kC>;
  const AttentionTile tile = a.tiles[blockIdx.x];
  const Place p = place_of(a, tile, static_cast<int>(blockIdx.y));
  const Unit unit{p, tile.unit * kUnitKeys, lowest_key(a, tile.position),
                  tile.position + tile.positions - 1, shared_bytes() + kScoreBytes};
  const auto block = [&](int b) {
    return block_of(a, p, unit.first + b * kTokens, unit.low, unit.high);
  };
  const int64_t own_place = block(warp_index());
  prefetch_block(a, own_place);
  int64_t place[Unit::kBlocks];
  LORRY_UNROLL
  for (int b = 0; b < Unit::kBlocks; ++b) place[b] = block(b);
  const float scale = score_scale(a.head_dim);
  const bool few = are_few_queries<kC>(a, p);
  const float* row = query_row(a, p, p.g);
  wait_for_previous();
  unit.copy(a, place, own_place);
  Query<kC> query;
  few ? load_few_queries<T, kC>(query, row, p.q) : load_query<T, kC>(query, a, p);
  wait_copies<0>();
  attend_together<T, kC>(query, a, p, unit, scale);
  if (!is_last(a, p)) return;
  for (int r = static_cast<int>(threadIdx.x) / kMergers; r < p.rows; r += 32 * kWarps / kMergers) {
    merge_row<T, kC>(a, p, r);
  }
}

}  // namespace lorry::cuda
