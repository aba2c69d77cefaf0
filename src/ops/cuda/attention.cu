// attention over keys and values in bf16, on the tensor cores.
//
// A warp has a tile: up to 16 query rows of one KV head, which are some positions times the heads
// that share it. It goes through the keys by units of kUnitKeys: scores, softmax and values of a
// unit from zero, then the unit's result is merged into what there is (attend.h). With few tiles
// each unit has a block of its own and merge_units does the same merging: equal bits. Rows of mma
// do not see each other, and a unit's place does not depend on the tile, so chunks of a prompt and
// batch mates change no bit.
//
// Keys and values go from the cache straight to registers, in the order of layout.h: lane 4 g + q
// has inputs 8 q ... of key g as 16 bytes, and of a pair of values (tokens 2q, 2q + 1) the columns
// 4 g ... 4 g + 3 of every 32.
#include "ops/cuda/attend.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

constexpr int kWarps = 4;
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

// Pair i as bf16; zeros beyond the head.
LORRY_DEVICE uint32_t query_pair(const AttentionArgs& a, const float* q, int i) {
  const float low = q[i < a.head_dim ? i : 0];
  const float high = q[i + 1 < a.head_dim ? i + 1 : 0];
  return pack_bf16(i < a.head_dim ? low : 0.0F, i + 1 < a.head_dim ? high : 0.0F);
}

// The block of the cache that holds key `key` of the tile's sequence; where no row of the tile sees
// any of its keys, one that some row does see.
LORRY_DEVICE int64_t block_of(const AttentionArgs& a, const Place& p, int key, int low, int high) {
  const int seen = key > high || key + kTokens <= low ? high : key;
  const int32_t block = a.table[int64_t{p.tile.sequence} * a.max_blocks + seen / kTokens];
  return (int64_t{block} * a.kv_heads + p.head) * a.block_bytes;
}

template <int kC>
struct Query {
  Word4 t[kC][2];
};

template <int kC>
LORRY_DEVICE void load_query(Query<kC>& query, const AttentionArgs& a, const Place& p) {
  const float* first = query_row(a, p, p.g);
  const float* second = query_row(a, p, p.g + 8);
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    LORRY_UNROLL
    for (int t = 0; t < 2; ++t) {
      const int i = 32 * c + 8 * p.q + 4 * t;
      query.t[c][t] = {query_pair(a, first, i), query_pair(a, second, i),
                       query_pair(a, first, i + 2), query_pair(a, second, i + 2)};
    }
  }
}

// Scores of rows g, g + 8 with keys first + 8 j + 2 q, + 1.
template <int kC>
LORRY_DEVICE Float4 score(const Query<kC>& query, const AttentionArgs& a, const Place& p, int first,
                          int j, int low, int high) {
  const auto width = static_cast<int>(head_width(true, a.head_dim));
  Float4 s{};
  const unsigned char* block = a.k + block_of(a, p, first + j / 2 * kTokens, low, high);
  const auto* key = reinterpret_cast<const uint16_t*>(block) + (j % 2 * 8 + p.g) * width;
  Word4 k[kC];
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    const int i = 32 * c + 8 * p.q;
    k[c] = *reinterpret_cast<const Word4*>(key + (i < width ? i : 0));
    if (i >= width) k[c] = {0, 0, 0, 0};
  }
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    mma_bf16(s, query.t[c][0], k[c].x, k[c].y);
    mma_bf16(s, query.t[c][1], k[c].z, k[c].w);
  }
  return s;
}

// Scores to probabilities in place (not yet divided), the largest score and the sum of a row in all
// lanes that have it; h: row g or g + 8.
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
      x = row < p.rows && key >= low && key <= position ? x * scale : -INFINITY;
      most = x > most || x != x ? x : most;
    }
  }
  for (int mask = 2; mask > 0; mask >>= 1) {
    const float other = shuffle_xor(most, mask);
    most = other > most || other != other ? other : most;
  }
  const float base = most == -INFINITY ? 0.0F : most;
  float sum = 0;
  LORRY_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) {
    LORRY_UNROLL
    for (int i = 0; i < 2; ++i) {
      float& x = s[j].v[2 * h + i];
      x = expf(x - base);
      sum += x;
    }
  }
  sum += shuffle_xor(sum, 1);
  sum += shuffle_xor(sum, 2);
  return {most, sum};
}

// Zero where the token is not between low and high: nobody sees what is there.
LORRY_DEVICE uint32_t seen_pair(uint32_t pair, int token, int low, int high) {
  if (token < low || token > high) pair &= 0xffff0000U;
  if (token + 1 < low || token + 1 > high) pair &= 0x0000ffffU;
  return pair;
}
LORRY_DEVICE Word4 load_values(const unsigned char* block, int pair, int width, int i, int token,
                               int low, int high) {
  const auto* v = reinterpret_cast<const uint16_t*>(block) + pair * 2 * width;
  const Word4 w = *reinterpret_cast<const Word4*>(v + (i < width ? 2 * i : 0));
  if (i >= width) return {0, 0, 0, 0};
  return {seen_pair(w.x, token, low, high), seen_pair(w.y, token, low, high),
          seen_pair(w.z, token, low, high), seen_pair(w.w, token, low, high)};
}

// Probabilities of the 16 keys of block b of a unit as an a operand.
LORRY_DEVICE Word4 pack_block(const Float4 (&s)[kKeyTiles], int b) {
  const Float4& left = s[2 * b];
  const Float4& right = s[2 * b + 1];
  return {pack_bf16(left.v[0], left.v[1]), pack_bf16(left.v[2], left.v[3]),
          pack_bf16(right.v[0], right.v[1]), pack_bf16(right.v[2], right.v[3])};
}

// o[j] += probabilities times values of block b: rows g, g + 8, columns 32 c + 4 (2 q), 4 (2 q +
// 1),
// + j.
LORRY_DEVICE void add_values(Float4 (&o)[4], const Word4& prob, const AttentionArgs& a,
                             const Place& p, int first, int b, int c, int low, int high) {
  const auto width = static_cast<int>(head_width(true, a.head_dim));
  const int key = first + b * kTokens;
  const unsigned char* block = a.v + block_of(a, p, key, low, high);
  const int i = 32 * c + 4 * p.g;
  const Word4 v0 = load_values(block, p.q, width, i, key + 2 * p.q, low, high);
  const Word4 v1 = load_values(block, p.q + 4, width, i, key + 2 * p.q + 8, low, high);
  mma_bf16(o[0], prob, v0.x, v1.x);
  mma_bf16(o[1], prob, v0.y, v1.y);
  mma_bf16(o[2], prob, v0.z, v1.z);
  mma_bf16(o[3], prob, v0.w, v1.w);
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
template <int kC>
LORRY_DEVICE void attend_unit(Result<kC>& r, const Query<kC>& query, const AttentionArgs& a,
                              const Place& p, int unit) {
  const float scale = 1.0F / sqrtf(static_cast<float>(a.head_dim));
  const int first = unit * kUnitKeys;
  const int low = lowest_key(a, p.tile.position);
  const int high = p.tile.position + p.tile.positions - 1;
  Float4 s[kKeyTiles];
  LORRY_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) s[j] = score<kC>(query, a, p, first, j, low, high);
  r.state[0] = soften(s, a, p, 0, first, scale);
  r.state[1] = soften(s, a, p, 1, first, scale);
  LORRY_UNROLL
  for (int c = 0; c < kC; ++c) {
    LORRY_UNROLL
    for (int j = 0; j < 4; ++j) r.o[c][j] = {};
  }
  LORRY_UNROLL
  for (int b = 0; b < kUnitKeys / kTokens; ++b) {
    const Word4 prob = pack_block(s, b);
    LORRY_UNROLL
    for (int c = 0; c < kC; ++c) add_values(r.o[c], prob, a, p, first, b, c, low, high);
  }
}

// Where a unit's result of row `row` lies: o [width], largest score, sum.
LORRY_DEVICE float* result_row(const AttentionArgs& a, const Place& p, int unit, int row) {
  const int64_t width = head_width(true, a.head_dim) + 2;
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
    const auto width = static_cast<int>(head_width(true, a.head_dim));
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

// By the block's warps: each makes a part of the scores, and from all of them a part of the
// columns.
template <int kC>
LORRY_DEVICE void attend_together(const Query<kC>& query, const AttentionArgs& a, const Place& p,
                                  int unit, int slot) {
  constexpr int kOwnTiles = kKeyTiles / kWarps;
  auto* shared = reinterpret_cast<Float4*>(shared_bytes());
  const float scale = 1.0F / sqrtf(static_cast<float>(a.head_dim));
  const int first = unit * kUnitKeys;
  const int low = lowest_key(a, p.tile.position);
  const int high = p.tile.position + p.tile.positions - 1;
  LORRY_UNROLL
  for (int i = 0; i < kOwnTiles; ++i) {
    const int j = warp_index() * kOwnTiles + i;
    shared[j * 32 + lane_index()] = score<kC>(query, a, p, first, j, low, high);
  }
  sync_threads();
  Float4 s[kKeyTiles];
  LORRY_UNROLL
  for (int j = 0; j < kKeyTiles; ++j) s[j] = shared[j * 32 + lane_index()];
  const RowState state[2] = {soften(s, a, p, 0, first, scale), soften(s, a, p, 1, first, scale)};
  for (int c = warp_index(); c < kC; c += kWarps) {
    Float4 o[4] = {};
    LORRY_UNROLL
    for (int b = 0; b < kUnitKeys / kTokens; ++b) {
      add_values(o, pack_block(s, b), a, p, first, b, c, low, high);
    }
    store_part(o, state, a, p, slot, c);
  }
}

template <int kC>
LORRY_DEVICE void merge_into(Result<kC>& all, const Result<kC>& unit) {
  LORRY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const Merge m = merge_states(all.state[h], unit.state[h]);
    LORRY_UNROLL
    for (int c = 0; c < kC; ++c) {
      LORRY_UNROLL
      for (int j = 0; j < 8; ++j) {
        float& x = all.o[c][j % 4].v[2 * h + j / 4];
        x = m(x, unit.o[c][j % 4].v[2 * h + j / 4]);
      }
    }
  }
}

template <int kC>
LORRY_DEVICE void store_rows(const Result<kC>& r, const AttentionArgs& a, const Place& p) {
  LORRY_UNROLL
  for (int h = 0; h < 2; ++h) {
    const int row = p.g + 8 * h;
    if (row >= p.rows) continue;
    uint16_t* to = output_row(a, p, row);
    LORRY_UNROLL
    for (int c = 0; c < kC; ++c) {
      LORRY_UNROLL
      for (int j = 0; j < 8; ++j) {
        const int column = column_of(p, c, j % 4, j / 4);
        if (column < a.head_dim) {
          to[column] = to_bf16(r.o[c][j % 4].v[2 * h + j / 4] / r.state[h].sum);
        }
      }
    }
  }
}

// grid: tiles by kWarps, (KV head, head tile).
template <int kC>
LORRY_KERNEL(32 * kWarps)
attention_kernel(AttentionArgs a) {
  begin_kernel();
  const int64_t at = int64_t{blockIdx.x} * kWarps + warp_index();
  if (at >= a.n_tiles) return;
  const AttentionTile tile = a.tiles[at];
  const Place p = place_of(a, tile, static_cast<int>(blockIdx.y));
  Query<kC> query;
  load_query<kC>(query, a, p);
  Result<kC> unit;
  Result<kC> all;
  for (int i = 0; i < tile.n_units; ++i) {
    attend_unit<kC>(unit, query, a, p, tile.unit + i);
    if (i == 0) {
      all = unit;
    } else {
      merge_into<kC>(all, unit);
    }
  }
  store_rows<kC>(all, a, p);
}

// A block a unit. grid: units, (KV head, head tile).
template <int kC>
LORRY_KERNEL(32 * kWarps)
unit_kernel(AttentionArgs a) {
  begin_kernel();
  const AttentionTile tile = a.tiles[blockIdx.x];
  const Place p = place_of(a, tile, static_cast<int>(blockIdx.y));
  Query<kC> query;
  load_query<kC>(query, a, p);
  const int slot = tile.unit - lowest_key(a, tile.position) / kUnitKeys;
  attend_together<kC>(query, a, p, tile.unit, slot);
}

// A warp a row of a tile. grid: tiles x 16 rows by kWarps, (KV head, head tile).
LORRY_KERNEL(32 * kWarps) merge_kernel(AttentionArgs a) {
  begin_kernel();
  const int64_t at = int64_t{blockIdx.x} * kWarps + warp_index();
  if (at >= int64_t{a.n_tiles} * 16) return;
  const Place p = place_of(a, a.tiles[at / 16], static_cast<int>(blockIdx.y));
  const auto row = static_cast<int>(at % 16);
  if (row >= p.rows) return;
  const auto width = static_cast<int>(head_width(true, a.head_dim));
  for (int i = lane_index(); i < a.head_dim; i += 32) {
    const float* unit = result_row(a, p, 0, row);
    RowState state{unit[width], unit[width + 1]};
    float o = unit[i];
    for (int u = 1; u < p.tile.n_units; ++u) {
      unit = result_row(a, p, u, row);
      const Merge m = merge_states(state, {unit[width], unit[width + 1]});
      o = m(o, unit[i]);
    }
    output_row(a, p, row)[i] = to_bf16(o / state.sum);
  }
}

template <int kC>
void attend(Stream s, const AttentionArgs& a, bool by_units) {
  const int64_t heads = int64_t{a.kv_heads} * a.head_tiles;
  constexpr int kThreads = 32 * kWarps;
  if (by_units) {
    constexpr size_t kScores = sizeof(Float4) * kKeyTiles * 32;
    return start<AttentionArgs, unit_kernel<kC>>("attention", {a.n_tiles, heads}, kThreads, kScores,
                                                 s, a);
  }
  start<AttentionArgs, attention_kernel<kC>>("attention", {ceil_div(a.n_tiles, kWarps), heads},
                                             kThreads, 0, s, a);
}

}  // namespace

void attention_bf16(Stream s, const AttentionArgs& a, bool by_units) {
  if (a.head_dim <= 32) return attend<1>(s, a, by_units);
  if (a.head_dim <= 64) return attend<2>(s, a, by_units);
  if (a.head_dim <= 96) return attend<3>(s, a, by_units);
  if (a.head_dim <= 128) return attend<4>(s, a, by_units);
  attend<8>(s, a, by_units);
}

void merge_units(Stream s, const AttentionArgs& a) {
  const Grid grid{ceil_div(int64_t{a.n_tiles} * 16, kWarps), int64_t{a.kv_heads} * a.head_tiles};
  start<AttentionArgs, merge_kernel>("merge_units", grid, 32 * kWarps, 0, s, a);
}

}  // namespace lorry::cuda
