// linear for prompts, on Hopper: many rows of x, arranged in tiles (layout.h).
//
// A block multiplies 128 outputs, 64 by each of two warpgroups, with up to 256 rows: weights go
// from memory to the registers of the a operand as they lie, x by way of shared memory, copied by
// a warp of a third warpgroup. The blocks of a cluster have neighbouring outputs and the same rows:
// each copies a part of x to both, so that the L2 cache is asked for half of it. Blocks stay and
// take tile after tile, so that x of the next one is copied while the sums of one are stored.
//
// The sums are in the order of rows_times.h: the first slice's wait in shared memory.
#pragma once
#include "ops/cuda/bulk.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/prompt_tiles.h"
#include "ops/cuda/rows_times.h"

namespace lorry::cuda {

constexpr int kConsumers = 256;  // threads that multiply
// Those, and a warpgroup of which one warp copies: registers are given to whole warpgroups.
constexpr int kPromptThreads = kConsumers + 128;
constexpr int kMultiplyRegisters = 240;
constexpr int kCopyRegisters = 24;
// A block starts with 168 registers a thread, which are all that it has.
static_assert(kConsumers * kMultiplyRegisters + 128 * kCopyRegisters <= kPromptThreads * 168);
constexpr int kStages = 3;
constexpr int kBuffers = 4;  // chunks of weights in registers, two of which are loaded at once
constexpr int kStageBytes = kWidest * kTileRowBytes;
constexpr int kStageChunks = kTileInputs / kChunk;
constexpr int kFetchedAhead = 2;  // stages of weights, from the one of x that is copied
constexpr int kHalf = kWidest * kBlockOutputs / 2;  // sums of a warpgroup
static_assert(kSlices == 2 && kSliceChunks % kBuffers == 0 && kBuffers % kStageChunks == 0);

// How many times kBuffers chunks an output has, and which of them begins the second slice.
LORRY_DEVICE int rounds_of(const LinearArgs& a) {
  return (static_cast<int>(a.plan.chunks()) + kBuffers - 1) / kBuffers;
}
LORRY_DEVICE int turn_of(const LinearArgs& a) {
  return slice_begin(static_cast<int>(a.plan.chunks()), 1) / kBuffers;
}

// What a block has in shared memory, and the next stage of it that a thread fills or multiplies.
struct Pipe {
  unsigned char* tiles;
  float* sums;       // of both warpgroups
  Barrier* full;     // of stages: the copies have arrived
  Barrier* empty;    // of stages: all blocks of the cluster have multiplied
  Barrier* meeting;  // of each warpgroup, then of both
  int stage = 0;
  uint32_t phase = 0;

  static constexpr int kBarriers = 2 * kStages + 3;
  static constexpr size_t kBytes = size_t{kStages} * kStageBytes +
                                   size_t{2} * kHalf * sizeof(float) + kBarriers * sizeof(Barrier) +
                                   kTileAlign;

  LORRY_DEVICE Pipe()
      : tiles(shared_tiles()),
        sums(reinterpret_cast<float*>(tiles + kStages * kStageBytes)),
        full(reinterpret_cast<Barrier*>(sums + 2 * kHalf)),
        empty(full + kStages),
        meeting(empty + kStages) {}

  LORRY_DEVICE void init() const {
    constexpr int kWarps = kConsumers / 32;
    for (int s = 0; s < kStages; ++s) {
      init_barrier(full + s, 1);
      init_barrier(empty + s, kWarps * kCluster);
    }
    init_barrier(meeting, kWarps / 2);
    init_barrier(meeting + 1, kWarps / 2);
    init_barrier(meeting + 2, kWarps);
    publish_barriers();
  }
  LORRY_DEVICE unsigned char* tile() const { return tiles + stage * kStageBytes; }
  LORRY_DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    phase ^= 1U;
  }
  // The warp has multiplied the stage before this one.
  LORRY_DEVICE void release_last() const {
    const int last = stage == 0 ? kStages - 1 : stage - 1;
    if (lane_index() < kCluster) arrive_at(empty + last, lane_index());
  }
};

// All warps that meet have come; what they wrote to shared memory can be read. They meet twice for
// a tile.
LORRY_DEVICE void meet(Barrier* b, uint32_t parity) {
  sync_warp();
  if (lane_index() == 0) arrive(b);
  wait(b, parity);
}

// Row block `block` of a block's outputs; beyond the last one that, which is not stored.
LORRY_DEVICE const unsigned char* row_block(const LinearArgs& a, const PromptTile& t, int block) {
  const int64_t blocks = (a.out + kRowBlock - 1) / kRowBlock;
  const int64_t own = int64_t{t.block} * (kBlockOutputs / kRowBlock) + block;
  return a.w + t.group * a.group_bytes + (own < blocks ? own : blocks - 1) * a.plan.block_bytes();
}

// The copying warp's work. Its first lane copies x; eight lanes, a row block each, bring weights
// into the L2 cache, as registers are room for too few of them on their long way there.
template <class Load>
LORRY_DEVICE void copy_tiles(const PromptArgs& a, Pipe pipe) {
  constexpr int kRowBlocks = kBlockOutputs / kRowBlock;
  constexpr int kBytes = kStageChunks * Load::kBytes;  // of weights, in a stage
  const int64_t pitch = arranged_rows(a.linear.rows) * kTileRowBytes;
  const int stages = rounds_of(a.linear) * (kBuffers / kStageChunks);
  const int whole = static_cast<int>(a.linear.plan.chunks()) / kStageChunks;
  for (TileWalk walk(a); walk.more(); walk.advance()) {
    const PromptTile t = walk.tile();
    const int part = t.rows * kTileRowBytes / kCluster;
    const int offset = walk.rank() * part;
    const unsigned char* x = a.linear.arranged + int64_t{t.row} * kTileRowBytes + offset;
    const unsigned char* w = row_block(a.linear, t, lane_index() % kRowBlocks);
    const int fetched = t.leads && lane_index() < kRowBlocks ? whole : 0;  // stages
    if (fetched >= kFetchedAhead) prefetch_bulk(w, kFetchedAhead * kBytes);
    w += kFetchedAhead * kBytes;
    for (int s = 0; s < stages; ++s, x += pitch, w += kBytes) {
      if (lane_index() == 0) {
        Barrier* full = pipe.full + pipe.stage;
        wait(pipe.empty + pipe.stage, pipe.phase ^ 1U);
        arrive_and_expect(full, kCluster * part);
        copy_to_cluster(pipe.tile() + offset, x, part, full);
      }
      sync_warp();
      if (s + kFetchedAhead < fetched) prefetch_bulk(w, kBytes);
      pipe.advance();
    }
  }
}

// The weights of a warp's row block on their way through registers.
template <class Load>
struct WeightStream {
  const unsigned char* zeros;
  int chunks;
  const unsigned char* w;
  typename Load::Raw raw[kBuffers];

  LORRY_DEVICE explicit WeightStream(const LinearArgs& a)
      : zeros(a.arranged + zeros_in_arranged(a.rows, a.plan.in)),
        chunks(static_cast<int>(a.plan.chunks())) {}

  // Beyond the end zeros, which are read too: registers of wgmma's that are written otherwise make
  // it wait.
  LORRY_DEVICE void fetch(int buffer, int chunk) {
    raw[buffer] = Load::fetch(chunk < chunks ? w + int64_t{chunk} * Load::kBytes : zeros);
  }
  LORRY_DEVICE void fetch_two(int buffer, int chunk) {
    fetch(buffer, chunk);
    fetch(buffer + 1, chunk + 1);
  }
  LORRY_DEVICE void begin(const LinearArgs& a, const PromptTile& t) {
    w = row_block(a, t, warp_index());
    fetch_two(0, 0);
  }
};

// Calls f(place, i) for a thread's sums: the place of sum[i] in shared memory.
template <int kN, class F>
LORRY_DEVICE void each_sum(float* sums, F&& f) {
  const int thread = thread_anew();
  const int q = thread % 4;
  const int output = thread % 128 / 32 * kRowBlock + thread % 32 / 4;
  float* half[2] = {sums + place_of_sum(2 * q, output), sums + place_of_sum(2 * q, output + 8)};
  LORRY_UNROLL
  for (int i = 0; i < kN / 2; ++i) f(half[i % 4 / 2] + i / 4 * kSumsOfEightRows + i % 2 * 128, i);
}

// Rounds of kBuffers chunks, from `round` on; fresh: sums begin at zero. Loads of weights are all
// waited for at once, as there is one scoreboard for them: they are made two chunks at a time, when
// none is on its way.
template <class Load, int kN>
LORRY_DEVICE void multiply_rounds(float (&sum)[kN / 2], Pipe& pipe, WeightStream<Load>& weights,
                                  int round, int last, bool fresh) {
  for (; round < last; ++round) {
    LORRY_UNROLL
    for (int b = 0; b < kBuffers; ++b) {
      const int c = b % kStageChunks;
      // For each chunk, so that the next one's loads are behind a barrier (load_once).
      wait(pipe.full + pipe.stage, pipe.phase);
      const unsigned char* x = pipe.tile();
      const Tiles& w = Load::widen(weights.raw[b]);
      wgmma_fence();
      wgmma<typename Load::Act, kN>(sum, w.t[0], tile_operand(x, c * 64), !fresh);
      wgmma<typename Load::Act, kN>(sum, w.t[1], tile_operand(x, c * 64 + 32), true);
      wgmma_commit();
      fresh = false;
      wgmma_wait<1>();
      if (c == 0 && b + round > 0) pipe.release_last();
      if (b % 2 == 0) weights.fetch_two(2 - b, round * kBuffers + b + 2);
      if (c == kStageChunks - 1) pipe.advance();
    }
  }
}

// A tile of at most kN rows; leaves the outputs in sums.
template <class Load, int kN>
LORRY_DEVICE void multiply_rows(const LinearArgs& a, Pipe& pipe, float* sums,
                                WeightStream<Load>& weights) {
  const int rounds = rounds_of(a);
  const int turn = turn_of(a);
  float sum[kN / 2] = {};  // else the registers of all widths would be taken all the time
  for (int slice = turn > 0 ? 0 : 1; slice < kSlices; ++slice) {
    const int begin = slice == 0 ? 0 : turn;
    multiply_rounds<Load, kN>(sum, pipe, weights, begin, slice == 0 ? turn : rounds, true);
    if (slice > 0) break;
    wgmma_wait<0>();
    each_sum<kN>(sums, [&](float* place, int i) { *place = sum[i]; });
  }
  float scale[2] = {1.0F, 1.0F};
  if (a.plan.scales != 0) {
    const auto* scales = reinterpret_cast<const float*>(weights.w + a.plan.scales_offset());
    scale[0] = scales[lane_index() / 4];
    scale[1] = scales[lane_index() / 4 + 8];
  }
  wgmma_wait<0>();
  pipe.release_last();
  if (turn > 0) each_sum<kN>(sums, [&](float* place, int i) { sum[i] = *place + sum[i]; });
  each_sum<kN>(sums, [&](float* place, int i) { *place = sum[i] * scale[i % 4 / 2]; });
}

// More widths than these need more registers than there are.
template <class Load>
LORRY_DEVICE void multiply_tile(int rows, const LinearArgs& a, Pipe& pipe, float* sums,
                                WeightStream<Load>& weights) {
  if (rows > 240) return multiply_rows<Load, 256>(a, pipe, sums, weights);
  if (rows > 224) return multiply_rows<Load, 240>(a, pipe, sums, weights);
  if (rows > 192) return multiply_rows<Load, 224>(a, pipe, sums, weights);
  if (rows > 176) return multiply_rows<Load, 192>(a, pipe, sums, weights);
  if (rows > 128) return multiply_rows<Load, 176>(a, pipe, sums, weights);
  if (rows > 64) return multiply_rows<Load, 128>(a, pipe, sums, weights);
  multiply_rows<Load, 64>(a, pipe, sums, weights);
}

// The multiplying threads' work.
template <class Load>
LORRY_DEVICE void multiply_tiles(const PromptArgs& args, Pipe pipe) {
  const LinearArgs& a = args.linear;
  const int group = warp_index() / 4;
  float* sums = pipe.sums + group * kHalf;
  const bool gated = a.glu.y != nullptr;
  Barrier* meeting = pipe.meeting + (gated ? 2 : group);
  WeightStream<Load> weights(a);
  TileWalk walk(args);
  if (walk.more()) weights.begin(a, walk.tile());
  while (walk.more()) {
    multiply_tile<Load>(walk.tile().rows, a, pipe, sums, weights);
    const PromptTile t = walk.tile();
    walk.advance();
    if (walk.more()) weights.begin(a, walk.tile());
    meet(meeting, 0);
    if (gated) {
      store_gated<typename Load::Act>(a, pipe.sums, pipe.sums + kHalf, t);
    } else {
      store_sums(a, sums, t, group);
    }
    meet(meeting, 1);
  }
}

template <class Load>
LORRY_KERNEL(kPromptThreads, 1)
prompt_kernel(PromptArgs a) {
  let_next_start();
  const Pipe pipe;
  if (threadIdx.x == 0) pipe.init();
  sync_cluster();
  wait_for_previous();
  if (threadIdx.x < kConsumers) {
    take_registers<kMultiplyRegisters>();
    multiply_tiles<Load>(a, pipe);
  } else {
    leave_registers<kCopyRegisters>();
    if (warp_index() == kConsumers / 32) copy_tiles<Load>(a, pipe);
  }
  sync_cluster();  // a block that ended could not be copied to
}

// Rows of a tile: fewer where there would be less than one for each cluster.
inline int32_t widest_tile(const LinearArgs& a, int64_t columns, int64_t clusters) {
  int32_t rows = kWidest;
  while (rows > 64 && columns * (ceil_div(a.rows, rows / 2) + a.groups - 1) <= clusters) rows /= 2;
  return rows;
}

template <class Load>
void multiply_prompt(Stream s, const LinearArgs& a) {
  const int64_t columns = ceil_div(a.out, int64_t{kCluster} * kBlockOutputs);
  const int64_t clusters = a.processors < kCluster ? 1 : a.processors / kCluster;
  const PromptArgs args{a, static_cast<int32_t>(columns), widest_tile(a, columns, clusters)};
  start<PromptArgs, prompt_kernel<Load>>("linear_prompt", {clusters * kCluster, 1, 1, kCluster},
                                         kPromptThreads, Pipe::kBytes, s, args);
}

}  // namespace lorry::cuda
