// attention: tiles of (sequence, KV head, query rows), each going through its splits of 256 keys in
// order. A few rows over long contexts read most of what they do from memory: there the splits are
// the tasks, so that threads share a sequence and go through the heads of a block one after the
// other, as they lie; results are merged afterwards, in the same order by the same arithmetic.
#include <cmath>
#include <cstring>

#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

constexpr int32_t kTileRows = 48;        // query rows of a tile, at least one position's heads
constexpr int64_t kSplitResults = 8192;  // rows times splits that can wait to be merged
constexpr int64_t kSplitRows = 4096;     // rows that may work by splits

int32_t heads_per_kv(const AttentionSpec& s) { return s.heads / s.kv_heads; }
int32_t tile_positions(const AttentionSpec& s) { return std::max(1, kTileRows / heads_per_kv(s)); }
int64_t tile_rows(const AttentionSpec& s) { return int64_t{tile_positions(s)} * heads_per_kv(s); }

// The result of one row's split, or the running sum of several.
struct RowState {
  float* max_sum;  // [2]
  float* o;        // [d]
};

int64_t line(int64_t bytes) { return round_up(bytes, 64); }

// What one thread needs for one tile.
struct TileScratch {
  std::byte* q;      // [rows, d], as the kernel reads it
  float* state;      // [rows, d + 2]
  float* o;          // [rows, d]
  float *max, *sum;  // [rows]
  int32_t *lo, *hi;  // [rows], relative to the split's first key
  std::byte* edge;   // two V blocks
};

int64_t tile_scratch_bytes(const AttentionSpec& s) {
  const int64_t r = tile_rows(s);
  const int64_t d = s.head_dim;
  return 2 * line(r * d * 4) + line(r * (d + 2) * 4) + 4 * line(r * 4) +
         2 * line(kBlockTokens * d * 4);
}

TileScratch tile_scratch(std::byte* at, const AttentionSpec& s) {
  const int64_t r = tile_rows(s);
  const int64_t d = s.head_dim;
  const auto take = [&](int64_t bytes) { return std::exchange(at, at + line(bytes)); };
  const auto floats = [&](int64_t n) { return reinterpret_cast<float*>(take(n * 4)); };
  const auto ints = [&](int64_t n) { return reinterpret_cast<int32_t*>(take(n * 4)); };
  TileScratch t{};
  t.q = take(r * d * 4);
  t.state = floats(r * (d + 2));
  t.o = floats(r * d);
  t.max = floats(r);
  t.sum = floats(r);
  t.lo = ints(r);
  t.hi = ints(r);
  t.edge = take(2 * line(kBlockTokens * d * 4));
  return t;
}

// First key that a position sees.
int32_t first_key(int32_t position, const AttentionSpec& s) {
  return s.window > 0 ? std::max(0, position - s.window + 1) : 0;
}

struct Splits {
  int32_t begin, end;
};
Splits splits_of(const AttentionTile& t, const AttentionSpec& s) {
  return {first_key(t.position, s) / kSplitTokens,
          (t.position + t.positions - 1) / kSplitTokens + 1};
}

// A copy of a V block in which tokens outside [from, to] are 0: they may hold another request's
// NaN, which a probability of 0 would not stop.
void copy_block(std::byte* to, const std::byte* v, int64_t d, Dtype dtype,
                std::pair<int32_t, int32_t> tokens) {
  const int64_t row = d * size_of(dtype);
  std::memcpy(to, v, static_cast<size_t>(kBlockTokens * row));
  for (int32_t t = 0; t < kBlockTokens; ++t) {
    if (t >= tokens.first && t <= tokens.second) continue;
    if (dtype != Dtype::bf16) {
      std::memset(to + t * row, 0, static_cast<size_t>(row));
    } else {
      auto* pair = reinterpret_cast<uint16_t*>(to) + t / 2 * 2 * d + t % 2;
      for (int64_t i = 0; i < d; ++i) pair[2 * i] = 0;
    }
  }
}

}  // namespace

// One call's arguments, and the steps that both ways of working share.
struct CpuOps::Attend {
  const Kernels& kernels;
  const ActKernels& act;
  const AttendKernels& attend;
  Tensor o, q;
  const KvLayer& kv;
  const AttentionPlan& plan;
  const AttentionSpec& spec;
  int64_t element;      // bytes of one of o
  int64_t block_bytes;  // of one head

  int32_t group() const { return heads_per_kv(spec); }
  int32_t rows(const AttentionTile& t) const { return t.positions * group(); }

  void load_q(const AttentionTile& t, const TileScratch& s) const {
    // The heads of a group lie side by side; a row of q is a multiple of its heads.
    const int64_t d = spec.head_dim;
    const int64_t n = group() * d;
    attend.load_q(s.q, q.row<const float>(t.row) + t.kv_head * n, q.pitch, t.positions, n);
  }

  bool sees(const AttentionTile& t, int32_t row, int32_t split) const {
    const int32_t p = t.position + row / group();
    return first_key(p, spec) / kSplitTokens <= split && split <= p / kSplitTokens;
  }

  // Blocks [first, last] of the sequence.
  struct Blocks {
    int32_t first, last;
  };
  Blocks blocks_of(const AttentionTile& t, int32_t split) const {
    const int32_t high = t.position + t.positions - 1;
    return {std::max(first_key(t.position, spec) / kBlockTokens, split * kSplitBlocks),
            std::min(high / kBlockTokens, split * kSplitBlocks + kSplitBlocks - 1)};
  }
  int64_t offset(const AttentionTile& t, int32_t block) const {
    const int32_t* table = plan.block_table.data() + int64_t{t.sequence} * plan.max_blocks;
    return (int64_t{table[block]} * spec.kv_heads + t.kv_head) * block_bytes;
  }

  // The split's values. Not int8: blocks with tokens that no row sees are copied.
  void find_values(const AttentionTile& t, Blocks in, const TileScratch& s, const void** v) const {
    const int32_t low = first_key(t.position, spec);
    const int32_t high = t.position + t.positions - 1;
    std::byte* edge = s.edge;
    for (int32_t b = in.first; b <= in.last; ++b) {
      const std::byte* block = kv.v.data + offset(t, b);
      v[b - in.first] = block;
      const int32_t from = low - b * kBlockTokens;
      const int32_t to = high - b * kBlockTokens;
      const bool whole = from <= 0 && to >= kBlockTokens - 1;
      if (whole || spec.kv == KvFormat::int8) continue;
      copy_block(edge, block, spec.head_dim, kv.v.dtype, {from, to});
      v[b - in.first] = edge;
      edge += line(block_bytes);
    }
  }

  // Leaves the results of a tile's split in s.o, s.max, s.sum. next: what the thread does then; no
  // tile: not known.
  struct Piece {
    const AttentionTile* tile;
    int32_t split;
  };
  const void* first_keys(Piece p, int32_t block) const {
    const Blocks in = blocks_of(*p.tile, p.split);
    return kv.k.data + offset(*p.tile, std::min(in.first + block, in.last));
  }
  bool has(Piece p) const {
    const Splits all = splits_of(*p.tile, spec);
    return all.begin <= p.split && p.split < all.end;
  }
  void run_split(Piece now, Piece next, const TileScratch& s) const {
    const AttentionTile& t = *now.tile;
    const Blocks in = blocks_of(t, now.split);
    const int32_t n = in.last - in.first + 1;
    // In the order in which they are read: keys, values, the next piece's keys.
    const void* blocks[2 * kSplitBlocks + kBlocksAhead];
    for (int32_t b = 0; b < n; ++b) blocks[b] = kv.k.data + offset(t, in.first + b);
    find_values(t, in, s, blocks + n);
    for (int32_t b = 0; b < kBlocksAhead; ++b) {
      blocks[2 * n + b] = next.tile == nullptr ? blocks[2 * n - 1] : first_keys(next, b);
    }
    for (int32_t r = 0; r < rows(t); ++r) {
      const int32_t p = t.position + r / group();
      s.lo[r] = first_key(p, spec) - in.first * kBlockTokens;
      s.hi[r] = p - in.first * kBlockTokens;
    }
    attend.split({.q = s.q,
                  .k = blocks,
                  .v = blocks + n,
                  .ahead = blocks + kBlocksAhead,
                  .lo = s.lo,
                  .hi = s.hi,
                  .rows = rows(t),
                  .blocks = n,
                  .d = spec.head_dim,
                  .scale = 1.0F / std::sqrt(static_cast<float>(spec.head_dim)),
                  .o = s.o,
                  .max = s.max,
                  .sum = s.sum});
  }

  void clear(RowState state) const {
    state.max_sum[0] = -std::numeric_limits<float>::infinity();
    state.max_sum[1] = 0;
    std::fill(state.o, state.o + spec.head_dim, 0.0F);
  }

  void finish(const AttentionTile& t, int32_t row, RowState state) const {
    const int64_t head = t.kv_head * group() + row % group();
    std::byte* y = o.data + ((t.row + row / group()) * o.pitch + head * spec.head_dim) * element;
    act.divide(y, state.o, state.max_sum[1], spec.head_dim);
  }

  // next: the thread's next tile, or null.
  void run_tile(const AttentionTile& t, const AttentionTile* next, const TileScratch& s) const {
    const int64_t d = spec.head_dim;
    const auto state = [&](int32_t r) {
      return RowState{s.state + r * (d + 2), s.state + r * (d + 2) + 2};
    };
    load_q(t, s);
    for (int32_t r = 0; r < rows(t); ++r) clear(state(r));
    const Splits splits = splits_of(t, spec);
    for (int32_t split = splits.begin; split < splits.end; ++split) {
      Piece then{&t, split + 1};
      if (then.split == splits.end)
        then = {next, next == nullptr ? 0 : splits_of(*next, spec).begin};
      run_split({&t, split}, then, s);
      for (int32_t r = 0; r < rows(t); ++r) {
        if (!sees(t, r, split)) continue;
        const float max_sum[2] = {s.max[r], s.sum[r]};
        kernels.merge(state(r).max_sum, state(r).o, max_sum, s.o + r * d, d);
      }
    }
    for (int32_t r = 0; r < rows(t); ++r) finish(t, r, state(r));
  }
};

// As many as leave each thread some tasks, of `tasks` with all heads.
int64_t CpuOps::heads_of_task(int64_t kv_heads, int64_t tasks) const {
  constexpr int64_t kTasksOfThread = 8;
  int64_t heads = kv_heads;
  while (heads % 2 == 0 && tasks * (kv_heads / heads) < kTasksOfThread * pool_.size()) heads /= 2;
  return heads;
}

size_t CpuOps::attention_scratch_bytes(int64_t, const AttentionSpec& spec) const {
  return static_cast<size_t>(pool_.size() * tile_scratch_bytes(spec) +
                             (kSplitRows + kSplitResults) * (spec.head_dim + 2) * 4);
}

void CpuOps::plan_attention(const AttentionPlan& plan, const AttentionSpec& spec) {
  tiles_.clear();
  const int32_t step = tile_positions(spec);
  for (size_t s = 0; s < plan.kv_len.size(); ++s) {
    const int32_t begin = plan.q_begin[s];
    const int32_t n = plan.q_begin[s + 1] - begin;
    for (int32_t i = 0; i < n; i += step) {
      const int32_t position = plan.kv_len[s] - n + i;
      const int32_t positions = std::min(step, n - i);
      const int64_t keys = position + positions - first_key(position, spec);
      for (int32_t h = 0; h < spec.kv_heads; ++h) {
        tiles_.push_back({static_cast<int32_t>(s), h, begin + i, position, positions,
                          keys * (positions * heads_per_kv(spec) + 2)});
      }
    }
  }
  std::sort(tiles_.begin(), tiles_.end(), [](const AttentionTile& a, const AttentionTile& b) {
    if (a.cost != b.cost) return a.cost > b.cost;
    return a.row != b.row ? a.row < b.row : a.kv_head < b.kv_head;
  });
}

// A task is a split of a row range for `heads` KV heads, which lie side by side in each block.
void CpuOps::attend_by_splits(const Attend& a, std::byte* scratch, int64_t rows) {
  const int64_t d = a.spec.head_dim;
  const auto results =
      reinterpret_cast<float*>(scratch + pool_.size() * tile_scratch_bytes(a.spec));
  // Tiles have at most as many rows as the largest one.
  const auto tiles = static_cast<int64_t>(tiles_.size());
  const int64_t rows_of_tile = rows / tiles;
  const auto at = [&](int64_t slot) {
    return RowState{results + slot * (d + 2), results + slot * (d + 2) + 2};
  };
  int32_t begin = std::numeric_limits<int32_t>::max();
  int32_t end = 0;
  for (const AttentionTile& t : tiles_) {
    begin = std::min(begin, splits_of(t, a.spec).begin);
    end = std::max(end, splits_of(t, a.spec).end);
  }
  for (int64_t r = 0; r < rows; ++r) a.clear(at(r));
  const auto round = static_cast<int32_t>(kSplitResults / rows);
  for (; begin < end; begin += round) {
    const int32_t n = std::min(round, end - begin);
    const int64_t heads = heads_of_task(a.spec.kv_heads, tiles * n / a.spec.kv_heads);
    // The first piece of a task; the tiles of its other heads follow.
    const auto piece = [&](int64_t task) {
      return Attend::Piece{&tiles_[static_cast<size_t>(task / n * heads)],
                           static_cast<int32_t>(begin + task % n)};
    };
    parallel_ahead(tiles / heads * n, [&](int64_t task, int64_t next, int thread) {
      const Attend::Piece first = piece(task);
      if (!a.has(first)) return;
      Attend::Piece after = next < 0 ? Attend::Piece{} : piece(next);
      if (next >= 0 && !a.has(after)) after = {};
      const TileScratch s = tile_scratch(scratch + thread * tile_scratch_bytes(a.spec), a.spec);
      for (int64_t h = 0; h < heads; ++h) {
        const Attend::Piece now{first.tile + h, first.split};
        const Attend::Piece then{now.tile + 1, now.split};
        a.load_q(*now.tile, s);
        a.run_split(now, h + 1 < heads ? then : after, s);
        const int64_t slot = rows + ((task / n * heads + h) * n + task % n) * rows_of_tile;
        for (int32_t r = 0; r < a.rows(*now.tile); ++r) {
          const RowState to = at(slot + r);
          to.max_sum[0] = s.max[r];
          to.max_sum[1] = s.sum[r];
          std::copy(s.o + r * d, s.o + (r + 1) * d, to.o);
        }
      }
    });
    parallel(tiles, [&](int64_t task, int) {
      const AttentionTile& t = tiles_[static_cast<size_t>(task)];
      for (int32_t r = 0; r < a.rows(t); ++r) {
        const RowState state = at(task * rows_of_tile + r);
        for (int32_t split = begin; split < begin + n; ++split) {
          if (!a.sees(t, r, split)) continue;
          const RowState from = at(rows + (task * n + split - begin) * rows_of_tile + r);
          kernels_.merge(state.max_sum, state.o, from.max_sum, from.o, d);
        }
        if (begin + n == end) a.finish(t, r, state);
      }
    });
  }
}

void CpuOps::attention(Tensor o, Tensor q, const KvLayer& kv, const AttentionPlan& plan,
                       const AttentionSpec& spec) {
  LORRY_CHECK(spec.head_dim % 2 == 0, "head dim {}", spec.head_dim);
  plan_attention(plan, spec);
  const bool int8 = spec.kv == KvFormat::int8;
  const Attend a{kernels_,
                 act_kernels_,
                 int8 ? kernels_.attend_int8 : act_kernels_.attend,
                 o,
                 q,
                 kv,
                 plan,
                 spec,
                 element(),
                 kv.k.cols() * size_of(kv.k.dtype)};
  const auto tiles = static_cast<int64_t>(tiles_.size());
  int64_t tile = 0;  // rows of the largest
  bool several = false;
  for (const AttentionTile& t : tiles_) {
    tile = std::max<int64_t>(tile, a.rows(t));
    const Splits s = splits_of(t, spec);
    several = several || s.end - s.begin > 1;
  }
  std::byte* scratch = plan.scratch.data;
  if (several && tiles * tile <= kSplitRows) {
    return attend_by_splits(a, scratch, tiles * tile);
  }
  parallel_ahead(tiles, [&](int64_t task, int64_t next, int thread) {
    a.run_tile(tiles_[static_cast<size_t>(task)],
               next < 0 ? nullptr : &tiles_[static_cast<size_t>(next)],
               tile_scratch(scratch + thread * tile_scratch_bytes(spec), spec));
  });
}

}  // namespace lorry::cpu
