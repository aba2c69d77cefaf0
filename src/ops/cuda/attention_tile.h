// What a warp does with a tile of query rows: scores, softmax and values of one unit of keys, and
// putting units together. attention.cu says who does it.
#pragma once
#include "ops/cuda/attend.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/mma.h"

namespace lorry::cuda {

constexpr int kKeyTiles = kUnitKeys / 8;

// Where a warp works.
struct Place {
  AttentionTile tile;
  int head;               // KV head
  int first_head, heads;  // query heads of the tile
  int index;              // of (KV head, head tile)
  int rows;               // positions * heads
  int g, q;

  // Of row i of the tile.
  LORRY_DEVICE int position(int i) const { return tile.position + i / heads; }
};

LORRY_DEVICE Place place_of(const AttentionArgs& a, const AttentionTile& tile, int index) {
  Place p;
  p.tile = tile;
  p.index = index;
  p.head = index / a.head_tiles;
  const int per_head = a.heads / a.kv_heads;
  const int within = index % a.head_tiles * a.tile_heads;
  p.first_head = p.head * per_head + within;
  p.heads = per_head - within < a.tile_heads ? per_head - within : a.tile_heads;
  p.rows = tile.positions * p.heads;
  p.g = lane_index() / 4;
  p.q = lane_index() % 4;
  return p;
}

// Keys that some row of the tile sees: [low, high].
LORRY_DEVICE int lowest_key(const AttentionArgs& a, int position) {
  return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

// Loads below are made whether what they bring is used or not, from a place that is there: a load
// in a branch would wait for the one before it.

// Row r of the tile; beyond the last one the first, whose scores nobody uses.
LORRY_DEVICE const float* query_row(const AttentionArgs& a, const Place& p, int r) {
  const int row = r < p.rows ? r : 0;
  return a.q + (p.tile.row + row / p.heads) * a.q_pitch +
         int64_t{p.first_head + row % p.heads} * a.head_dim;
}

// Elements i ... i + 7 as pairs of T; zeros beyond the head.
template <class T>
LORRY_DEVICE Word4 query_pairs(const AttentionArgs& a, const float* q, int i) {
  float v[8];
  if (i + 8 <= a.head_dim && reinterpret_cast<uintptr_t>(q + i) % 16 == 0) {
    const auto* words = reinterpret_cast<const Word4*>(q + i);
    const Word4 half[2] = {words[0], words[1]};
    LORRY_UNROLL
    for (int h = 0; h < 2; ++h) {
      v[4 * h] = as_float(half[h].x);
      v[4 * h + 1] = as_float(half[h].y);
      v[4 * h + 2] = as_float(half[h].z);
      v[4 * h + 3] = as_float(half[h].w);
    }
  } else {
    LORRY_UNROLL
    for (int e = 0; e < 8; ++e) v[e] = i + e < a.head_dim ? q[i + e] : 0.0F;
  }
  return {T::pack(v[0], v[1]), T::pack(v[2], v[3]), T::pack(v[4], v[5]), T::pack(v[6], v[7])};
}

// The block of the cache that holds key `key` of the tile's sequence; where no row of the tile sees
// any of its keys, one that some row does see.
LORRY_DEVICE int32_t block_at(const AttentionArgs& a, const Place& p, int key, int low, int high) {
  const int seen = key > high || key + kTokens <= low ? high : key;
  return a.table[int64_t{p.tile.sequence} * a.max_blocks + seen / kTokens];
}
// Where it lies.
LORRY_DEVICE int64_t place_of_block(const AttentionArgs& a, const Place& p, int32_t block) {
  return (int64_t{block} * a.kv_heads + p.head) * a.block_bytes;
}
LORRY_DEVICE int64_t block_of(const AttentionArgs& a, const Place& p, int key, int low, int high) {
  return place_of_block(a, p, block_at(a, p, key, low, high));
}

template <int kC>
struct Query {
  Word4 t[kC][2];
};

template <class T, int kC>
LORRY_DEVICE void load_query(Query<kC>& query, const AttentionArgs& a, const Place& p) {
  const float* first = query_row(a, p, p.g);
  const float* second = query_row(a, p, p.g + 8);
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    const Word4 left = query_pairs<T>(a, first, 32 * c + 8 * p.q);
    const Word4 right = query_pairs<T>(a, second, 32 * c + 8 * p.q);
    query.t[c][0] = {left.x, right.x, left.y, right.y};
    query.t[c][1] = {left.z, right.z, left.w, right.w};
  }
}

// Scores of rows g, g + 8 with keys 8 j + 2 q, + 1 of a unit, of kN j from `first` on. Sums take
// turns, since each waits for its last product.
template <class T, int kN, int kC, class Unit>
LORRY_DEVICE void score(Float4* s, const Query<kC>& query, const Unit& unit, int first) {
  LORRY_UNROLL
  for (int j = 0; j < kN; ++j) s[j] = {};
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    Word4 k[kN];
    LORRY_UNROLL
    for (int j = 0; j < kN; ++j) k[j] = unit.key(first + j, c);
    LORRY_UNROLL
    for (int j = 0; j < kN; ++j) mma<T>(s[j], query.t[c][0], k[j].x, k[j].y);
    LORRY_UNROLL
    for (int j = 0; j < kN; ++j) mma<T>(s[j], query.t[c][1], k[j].z, k[j].w);
  }
}

// Whether each row of the tile sees all keys of a unit: then nothing has to be hidden.
LORRY_DEVICE bool sees_all(const AttentionArgs& a, const Place& p, int first) {
  const int last = p.tile.position + p.tile.positions - 1;
  return lowest_key(a, last) <= first && first + kUnitKeys - 1 <= p.tile.position;
}

// Scores to probabilities in place (not yet divided), the largest score and the sum of a row in all
// lanes that have it; h: row g or g + 8. kAll: the rows see all keys.
template <bool kAll>
LORRY_DEVICE RowState soften(Float4 (&s)[kKeyTiles], const AttentionArgs& a, const Place& p, int h,
                             int first, float scale) {
  const int row = p.g + 8 * h;
  const int position = p.position(row);
  const int low = lowest_key(a, position);
  float most = -INFINITY;
  LORRY_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) {
    LORRY_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int key = first + 8 * j + 2 * p.q + i;
      float& x = s[j].v[2 * h + i];
      if (!kAll) x = row < p.rows && key >= low && key <= position ? x : -INFINITY;
      most = larger_or_nan(x, most);
    }
  }
  for (int mask = 2; mask > 0; mask >>= 1) most = larger_or_nan(shuffle_xor(most, mask), most);
  most *= scale;
  const float base = most == -INFINITY ? 0.0F : most;
  float sum = 0;
  LORRY_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) {
    LORRY_UNROLL
    for (int i = 0; i < 2; ++i) {
      float& x = s[j].v[2 * h + i];
      x = power_of_2(fmaf(x, scale, -base));
      sum += x;
    }
  }
  sum += shuffle_xor(sum, 1);
  sum += shuffle_xor(sum, 2);
  return {most, sum};
}

// Values of tokens token, token + 1: zero where one is not between low and high, since nobody sees
// what is there.
LORRY_DEVICE Word4 seen_values(const Word4& w, int token, int low, int high) {
  const uint32_t mask = (token < low || token > high ? 0U : 0xffffU) |
                        (token + 1 < low || token + 1 > high ? 0U : 0xffff0000U);
  return {w.x & mask, w.y & mask, w.z & mask, w.w & mask};
}

// Probabilities of the 16 keys of block b of a unit as an a operand.
template <class T>
LORRY_DEVICE Word4 pack_block(const Float4 (&s)[kKeyTiles], int b) {
  const Float4& left = s[2 * b];
  const Float4& right = s[2 * b + 1];
  return {T::pack(left.v[0], left.v[1]), T::pack(left.v[2], left.v[3]),
          T::pack(right.v[0], right.v[1]), T::pack(right.v[2], right.v[3])};
}

// o[j] += probabilities times values of block b: rows g, g + 8, columns 32 c + 4 (2 q), 4 (2 q +
// 1), + j. kAll: some row sees each of the values.
template <class T, bool kAll, class Unit>
LORRY_DEVICE void add_values(Float4 (&o)[4], const Word4& prob, const Unit& unit, int b, int c) {
  const int q = unit.p.q;
  const int key = unit.first + b * kTokens + 2 * q;
  Word4 v0 = unit.values(b, q, c);
  Word4 v1 = unit.values(b, q + 4, c);
  if (!kAll) {
    v0 = seen_values(v0, key, unit.low, unit.high);
    v1 = seen_values(v1, key + 8, unit.low, unit.high);
  }
  mma<T>(o[0], prob, v0.x, v1.x);
  mma<T>(o[1], prob, v0.y, v1.y);
  mma<T>(o[2], prob, v0.z, v1.z);
  mma<T>(o[3], prob, v0.w, v1.w);
}

// The column of v[2 h + i] of o[c][j].
LORRY_DEVICE int column_of(const Place& p, int c, int j, int i) {
  return 32 * c + 4 * (2 * p.q + i) + j;
}

template <int kC>
struct Result {
  Float4 o[kC][4];
  RowState state[2];  // of rows g and g + 8
};

// By one warp.
template <class T, bool kAll, int kC, class Unit>
LORRY_DEVICE void attend_keys(Result<kC>& r, const Query<kC>& query, const Unit& unit) {
  constexpr int kTogether = 4;
  const float scale = score_scale(unit.a.head_dim);
  Float4 s[kKeyTiles];
  LORRY_UNROLL
  for (int j = 0; j < kKeyTiles; j += kTogether) score<T, kTogether>(s + j, query, unit, j);
  r.state[0] = soften<kAll>(s, unit.a, unit.p, 0, unit.first, scale);
  r.state[1] = soften<kAll>(s, unit.a, unit.p, 1, unit.first, scale);
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    LORRY_UNROLL
    for (int j = 0; j < 4; ++j) r.o[c][j] = {};
  }
  LORRY_UNROLL
  for (int b = 0; b < kUnitKeys / kTokens; ++b) {
    const Word4 prob = pack_block<T>(s, b);
    LORRY_UNROLL
    for (int c = 0; c < kC; ++c) add_values<T, kAll>(r.o[c], prob, unit, b, c);
  }
}
template <class T, int kC, class Unit>
LORRY_DEVICE void attend_unit(Result<kC>& r, const Query<kC>& query, const Unit& unit) {
  if (sees_all(unit.a, unit.p, unit.first)) return attend_keys<T, true, kC>(r, query, unit);
  attend_keys<T, false, kC>(r, query, unit);
}

// Where a unit's result of row `row` lies: o [width], largest score, sum.
LORRY_DEVICE float* result_row(const AttentionArgs& a, const Place& p, int unit, int row) {
  const int64_t width = head_width(a.head_dim) + 2;
  const int64_t slot = p.tile.first_slot + unit;
  return a.results + ((slot * a.kv_heads * a.head_tiles + p.index) * 16 + row) * width;
}

LORRY_DEVICE uint16_t* output_row(const AttentionArgs& a, const Place& p, int row) {
  return static_cast<uint16_t*>(a.o) + (p.tile.row + row / p.heads) * a.o_pitch +
         int64_t{p.first_head + row % p.heads} * a.head_dim;
}

// Columns 32 c ... + 31 of a unit's result; its states with the first ones.
LORRY_DEVICE void store_part(const Float4 (&o)[4], const RowState (&state)[2],
                             const AttentionArgs& a, const Place& p, int unit, int c) {
  LORRY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = p.g + 8 * h;
    if (row >= p.rows) continue;
    float* to = result_row(a, p, unit, row);
    const auto width = static_cast<int>(head_width(a.head_dim));
    LORRY_UNROLL
    for (int j = 0; j < 8; ++j) {
      const int column = column_of(p, c, j % 4, j / 4);
      if (column < width) to[column] = o[j % 4].v[2 * h + j / 4];
    }
    if (c == 0 && p.q == 0) {
      to[width] = state[h].most;
      to[width + 1] = state[h].sum;
    }
  }
}

// f(value of all, that of the unit, row).
template <int kC, class F>
LORRY_DEVICE void each_value(Result<kC>& all, const Result<kC>& unit, F&& f) {
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    LORRY_UNROLL
    for (int j = 0; j < 4; ++j) {
      LORRY_UNROLL
      for (int i = 0; i < 4; ++i) f(all.o[c][j].v[i], unit.o[c][j].v[i], i / 2);
    }
  }
}

template <int kC>
LORRY_DEVICE void merge_into(Result<kC>& all, const Result<kC>& unit) {
  const Merge m[2] = {merge_states(all.state[0], unit.state[0]),
                      merge_states(all.state[1], unit.state[1])};
  if (ballot(m[0].keep || m[1].keep) != 0) {
    each_value(all, unit, [&](float& x, float y, int h) { x = m[h](x, y); });
  } else {
    each_value(all, unit, [&](float& x, float y, int h) { x = m[h].add(x, y); });
  }
}

template <class T, int kC>
LORRY_DEVICE void store_rows(const Result<kC>& r, const AttentionArgs& a, const Place& p) {
  const bool by_four = a.head_dim % 4 == 0 && a.o_pitch % 4 == 0 &&
                       reinterpret_cast<uintptr_t>(a.o) % sizeof(Word2) == 0;
  LORRY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = p.g + 8 * h;
    if (row >= p.rows) continue;
    const float factor = 1.0F / r.state[h].sum;
    uint16_t* to = output_row(a, p, row);
    LORRY_UNROLL
    for (int c = 0; c < kC; ++c) {
      LORRY_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int column = column_of(p, c, 0, i);
        const auto at = [&](int j) { return r.o[c][j].v[2 * h + i] * factor; };
        if (by_four && column < a.head_dim) {
          *reinterpret_cast<Word2*>(to + column) = {T::pack(at(0), at(1)), T::pack(at(2), at(3))};
          continue;
        }
        LORRY_UNROLL
        for (int j = 0; j < 4; ++j) {
          if (column + j < a.head_dim) to[column + j] = T::to(at(j));
        }
      }
    }
  }
}

}  // namespace lorry::cuda
