// attention over keys and values in bf16 or f16, on the tensor cores.
//
// A warp has a tile: up to 16 query rows of one KV head, which are some positions times the heads
// that share it. It goes through the keys by units of kUnitKeys: scores, softmax and values of a
// unit from zero, then the unit's result is merged into what there is (attend.h). With few tiles
// each unit has a block of its own (attention_unit.h) and the last of them does the same merging:
// equal bits. Rows of mma do not see each other, and a unit's place does not depend on the tile, so
// chunks of a prompt and batch mates change no bit.
//
// Keys and values go from the cache to registers by way of shared memory, in the order of layout.h:
// lane 4 g + q has inputs 8 q ... of key g as 16 bytes, and of a pair of values (tokens 2q, 2q + 1)
// the columns 4 g ... 4 g + 3 of every 32.
#include "ops/cuda/attention_tile.h"
#include "ops/cuda/attention_unit.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

// A unit's keys and values in shared memory: rows of kKeyParts and pairs of rows of kPairParts
// parts of 16 bytes, swizzled so that the lanes of a quarter warp read other banks.
template <int kC>
struct SharedUnit {
  static constexpr int kKeyParts = kC <= 2 ? 8 : kC <= 4 ? 16 : 32;
  static constexpr int kPairParts = 8 * kC;
  static constexpr int kKeyBytes = kUnitKeys * kKeyParts * 16;
  static constexpr int kBytes = kKeyBytes + kUnitKeys / 2 * kPairParts * 16;

  const AttentionArgs& a;
  const Place& p;
  int first, low, high;
  const unsigned char* memory;

  LORRY_DEVICE static int key_place(int row, int part) {
    return (row * kKeyParts + (part ^ (row & 1) << 2)) * 16;
  }
  LORRY_DEVICE static int pair_place(int pair, int part) {
    return kKeyBytes + (pair * kPairParts + (part ^ (pair & 3) << 1)) * 16;
  }
  LORRY_DEVICE Word4 key(int j, int c) const {
    return *reinterpret_cast<const Word4*>(memory + key_place(8 * j + p.g, 4 * c + p.q));
  }
  LORRY_DEVICE Word4 values(int b, int pair, int c) const {
    return *reinterpret_cast<const Word4*>(memory + pair_place(8 * b + pair, 8 * c + p.g));
  }
};

// The blocks of a unit; for tokens before `low` and behind `high`, whose blocks may not be there,
// others.
struct UnitBlocks {
  static constexpr int kBlocks = kUnitKeys / kTokens;
  int32_t at[kBlocks];

  LORRY_DEVICE UnitBlocks(const AttentionArgs& a, const Place& p, int unit, int low, int high) {
    LORRY_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
      at[b] = block_at(a, p, unit * kUnitKeys + b * kTokens, low, high);
    }
  }
};

// Rows of kParts parts of 16 bytes that a block of threads copies at once: whole ones, of a block
// of kRows.
constexpr int rows_at_once(int parts, int rows) {
  int n = 1;
  while (2 * n <= rows && 2 * n * parts <= 32 * kWarps) n *= 2;
  return n;
}

// Starts the copies of kRows rows of kParts parts of each block of a unit by all threads. place(row
// of the unit, part): in `to`.
template <int kRows, int kParts, class F>
LORRY_DEVICE void copy_rows(unsigned char* to, const unsigned char* cache,
                            const int64_t (&blocks)[UnitBlocks::kBlocks], int row_bytes,
                            F&& place) {
  constexpr int kAtOnce = rows_at_once(kParts, kRows);
  const int row = static_cast<int>(threadIdx.x) / kParts;
  const int part = static_cast<int>(threadIdx.x) % kParts;
  if (row >= kAtOnce) return;
  const bool there = part * 16 < row_bytes;
  const unsigned char* from = cache + (there ? row * row_bytes + part * 16 : 0);
  LORRY_UNROLL
  for (int b = 0; b < UnitBlocks::kBlocks; ++b) {
    LORRY_UNROLL
    for (int r = 0; r < kRows; r += kAtOnce) {
      copy_async(to + place(b * kRows + r + row, part), from + blocks[b] + r * row_bytes, !there);
    }
  }
}

template <int kC>
LORRY_DEVICE void copy_unit(unsigned char* to, const AttentionArgs& a, const Place& p,
                            const UnitBlocks& blocks) {
  const int bytes = static_cast<int>(head_width(a.head_dim)) * 2;
  int64_t at[UnitBlocks::kBlocks];
  LORRY_UNROLL
  for (int b = 0; b < UnitBlocks::kBlocks; ++b) at[b] = place_of_block(a, p, blocks.at[b]);
  copy_rows<kTokens, 4 * kC>(to, a.k, at, bytes, SharedUnit<kC>::key_place);
  copy_rows<kTokens / 2, 8 * kC>(to, a.v, at, 2 * bytes, SharedUnit<kC>::pair_place);
  commit_copies();
}

// Prompts: a warp a tile, all of one sequence, so that the block reads its keys and values once.
// Tiles without units fill up the last block of a sequence. grid: tiles by kWarps, (KV head, head
// tile).
template <class T, int kC>
LORRY_KERNEL(32 * kWarps)
prompt_kernel(AttentionArgs a) {
  begin_kernel();
  unsigned char* shared = shared_bytes();
  // The longest ones first.
  const AttentionTile* tiles = a.tiles + int64_t{gridDim.x - 1 - blockIdx.x} * kWarps;
  const AttentionTile tile = tiles[warp_index()];
  const Place p = place_of(a, tile, static_cast<int>(blockIdx.y));
  const int low = lowest_key(a, tiles[0].position);
  int begin = tiles[0].unit;
  int end = 0;
  int high = 0;
  LORRY_UNROLL
  for (int w = 0; w < kWarps; ++w) {
    if (tiles[w].n_units == 0) continue;
    begin = tiles[w].unit < begin ? tiles[w].unit : begin;
    const int last = tiles[w].unit + tiles[w].n_units;
    end = last > end ? last : end;
    const int position = tiles[w].position + tiles[w].positions - 1;
    high = position > high ? position : high;
  }
  Query<kC> query;
  load_query<T, kC>(query, a, p);
  copy_unit<kC>(shared, a, p, UnitBlocks(a, p, begin, low, high));
  UnitBlocks next(a, p, begin + 1, low, high);
  Result<kC> all;
  for (int u = begin; u < end; ++u) {
    unsigned char* here = shared + (u - begin) % 2 * SharedUnit<kC>::kBytes;
    unsigned char* there = shared + (u - begin + 1) % 2 * SharedUnit<kC>::kBytes;
    wait_copies<0>();
    sync_threads();  // and the last unit has been read
    if (u + 1 < end) copy_unit<kC>(there, a, p, next);
    next = UnitBlocks(a, p, u + 2, low, high);
    if (u < tile.unit || u >= tile.unit + tile.n_units) continue;
    const SharedUnit<kC> unit{
        a,   p, u * kUnitKeys, lowest_key(a, tile.position), tile.position + tile.positions - 1,
        here};
    Result<kC> part;
    attend_unit<T, kC>(part, query, unit);
    if (u == tile.unit) {
      all = part;
    } else {
      merge_into<kC>(all, part);
    }
  }
  if (tile.n_units > 0) store_rows<T, kC>(all, a, p);
}

template <class T, int kC>
void attend(Stream s, const AttentionArgs& a, bool by_units) {
  const int64_t heads = int64_t{a.kv_heads} * a.head_tiles;
  constexpr int kThreads = 32 * kWarps;
  if (by_units) {
    return start<AttentionArgs, unit_kernel<T, kC>>("attention", {a.n_tiles, heads}, kThreads,
                                                    kScoreBytes + OwnUnit<kC>::kBytes, s, a);
  }
  constexpr size_t kUnits = size_t{2} * SharedUnit<kC>::kBytes;
  start<AttentionArgs, prompt_kernel<T, kC>>("attention", {ceil_div(a.n_tiles, kWarps), heads},
                                             kThreads, kUnits, s, a);
}

template <class T>
void attend_as(Stream s, const AttentionArgs& a, bool by_units) {
  if (a.head_dim <= 32) return attend<T, 1>(s, a, by_units);
  if (a.head_dim <= 64) return attend<T, 2>(s, a, by_units);
  if (a.head_dim <= 96) return attend<T, 3>(s, a, by_units);
  if (a.head_dim <= 128) return attend<T, 4>(s, a, by_units);
  attend<T, 8>(s, a, by_units);
}

}  // namespace

void attention_mma(Stream s, const AttentionArgs& a, Act act, bool by_units) {
  act == Act::bf16 ? attend_as<Bf16>(s, a, by_units) : attend_as<F16>(s, a, by_units);
}

}  // namespace lorry::cuda
