// linear for prompts, on Hopper: many rows of x, arranged in tiles (layout.h).
//
// A block multiplies 128 outputs, 64 by each of two warpgroups, with up to 192 rows. A warp of a
// third warpgroup copies weights and x into shared memory, stage by stage: x to be read there by
// wgmma, weights as they lie, for the registers of its a operand (loads from memory into those
// would be waited for all at once: there is one scoreboard for them). The blocks of a cluster have
// neighbouring outputs and the same rows: each copies a part of x to both, as the L2 cache is what
// limits this kernel. Blocks stay and take tile after tile, so that the next one's stages are
// copied while the sums of one are stored.
//
// The sums are in the order of rows_times.h: the first slice's wait in registers, those of half of
// the rows, and in shared memory. By way of that the outputs leave, half of the rows at a time.
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
constexpr int kMultiplyRegisters = 232;
constexpr int kCopyRegisters = 40;
// A block starts with 168 registers a thread, which are all that it has.
static_assert(kConsumers * kMultiplyRegisters + 128 * kCopyRegisters <= kPromptThreads * 168);
constexpr int kStages = 4;
constexpr int kStageChunks = kTileInputs / kChunk;
constexpr int kTileBytes = kWidest * kTileRowBytes;
constexpr int kRowBlocks = kBlockOutputs / kRowBlock;
constexpr int kStageBytes = kTileBytes + kRowBlocks * kStageChunks * kChunkValues * 2;
constexpr int kFetchedAhead = 2;  // stages of weights, from the one that is copied
constexpr int kHalf = kWidest / 2 * kBlockOutputs / 2;  // sums of a warpgroup and half of the rows
static_assert(kSlices == 2 && kSliceChunks % kStageChunks == 0 && kZeroBytes == kChunkValues * 2);

// Stages of an output's inputs, and which of them begins the second slice.
LORRY_DEVICE int stages_of(const LinearArgs& a) {
  return (static_cast<int>(a.plan.chunks()) + kStageChunks - 1) / kStageChunks;
}
LORRY_DEVICE int turn_of(const LinearArgs& a) {
  return slice_begin(static_cast<int>(a.plan.chunks()), 1) / kStageChunks;
}

// What a block has in shared memory, and the next stage of it that a thread fills or multiplies.
struct Pipe {
  unsigned char* tiles;
  float* sums;       // kHalf of both warpgroups
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
  LORRY_DEVICE unsigned char* weights() const { return tile() + kTileBytes; }
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

// All warps that meet have come; what they wrote to shared memory can be read. They meet four times
// for a tile.
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

// A stage of the weights of a row block; beyond the last chunk zeros.
template <class Load>
LORRY_DEVICE void copy_weights(const LinearArgs& a, const Pipe& pipe, const unsigned char* w,
                               int stage) {
  constexpr int kBytes = kStageChunks * Load::kBytes;
  unsigned char* to = pipe.weights() + lane_index() * kBytes;
  const int left = static_cast<int>(a.plan.chunks()) - stage * kStageChunks;
  const int bytes = left < kStageChunks ? left * Load::kBytes : kBytes;
  Barrier* full = pipe.full + pipe.stage;
  copy_bulk(to, w + int64_t{stage} * kBytes, bytes, full);
  if (bytes == kBytes) return;
  copy_bulk(to + bytes, a.arranged + zeros_in_arranged(a.rows, a.plan.in), kBytes - bytes, full);
}

// The copying warp's work. Its first lane copies x; eight lanes copy weights, a row block each, and
// ask for those of later stages to be brought into the L2 cache.
template <class Load>
LORRY_DEVICE void copy_tiles(const PromptArgs& a, Pipe pipe) {
  constexpr int kBytes = kStageChunks * Load::kBytes;  // of a row block, in a stage
  const int64_t pitch = arranged_rows(a.linear.rows) * kTileRowBytes;
  const int stages = stages_of(a.linear);
  const int whole = static_cast<int>(a.linear.plan.chunks()) / kStageChunks;
  for (TileWalk walk(a); walk.more(); walk.advance()) {
    const PromptTile t = walk.tile();
    const int part = t.rows * kTileRowBytes / kCluster;
    const int offset = walk.rank() * part;
    const unsigned char* x = a.linear.arranged + int64_t{t.row} * kTileRowBytes + offset;
    const unsigned char* w = row_block(a.linear, t, lane_index() % kRowBlocks);
    const bool copies = lane_index() < kRowBlocks;
    if (copies && whole >= kFetchedAhead) prefetch_bulk(w, kFetchedAhead * kBytes);
    for (int s = 0; s < stages; ++s, x += pitch) {
      if (lane_index() == 0) {
        Barrier* full = pipe.full + pipe.stage;
        wait(pipe.empty + pipe.stage, pipe.phase ^ 1U);
        arrive_and_expect(full, kCluster * part + kRowBlocks * kBytes);
        copy_to_cluster(pipe.tile() + offset, x, part, full);
      }
      sync_warp();
      if (copies) copy_weights<Load>(a.linear, pipe, w, s);
      if (copies && s + kFetchedAhead < whole) {
        prefetch_bulk(w + int64_t{s + kFetchedAhead} * kBytes, kBytes);
      }
      pipe.advance();
    }
  }
}

// Calls f(place, i) for a thread's sums of the first or second half of kN rows: the place of sum[i]
// in shared memory.
template <int kN, class F>
LORRY_DEVICE void each_sum(float* sums, int half, F&& f) {
  const int thread = thread_anew();
  const int q = thread % 4;
  const int output = thread % 128 / 32 * kRowBlock + thread % 32 / 4;
  float* at[2] = {sums + place_of_sum(2 * q, output), sums + place_of_sum(2 * q, output + 8)};
  LORRY_UNROLL
  for (int i = 0; i < kN / 4; ++i) {
    f(at[i % 4 / 2] + i / 4 * kSumsOfEightRows + i % 2 * 128, half * (kN / 4) + i);
  }
}

// A tile of at most kN rows.
template <class Load, int kN>
LORRY_DEVICE void multiply_rows(const LinearArgs& a, Pipe& pipe, float* sums,
                                float (&sum)[kN / 2]) {
  static_assert(kN % 16 == 0 && kN <= kWidest);
  const int stages = stages_of(a);
  const int turn = turn_of(a);
  float first[kN / 4] = {};
  bool fresh = true;
  for (int s = 0; s < stages; ++s) {
    if (s == turn && s > 0) {
      wgmma_wait<0>();
      LORRY_UNROLL
      for (int i = 0; i < kN / 4; ++i) first[i] = sum[i];
      each_sum<kN>(sums, 1, [&](float* place, int i) { *place = sum[i]; });
      fresh = true;
    }
    wait(pipe.full + pipe.stage, pipe.phase);
    const unsigned char* x = pipe.tile();
    const unsigned char* w = pipe.weights() + warp_index() * kStageChunks * Load::kBytes;
    LORRY_UNROLL
    for (int c = 0; c < kStageChunks; ++c) {
      const Tiles tiles = Load::load(w + c * Load::kBytes);
      wgmma_fence();
      wgmma<typename Load::Act, kN>(sum, tiles.t[0], tile_operand(x, c * 64), !fresh);
      wgmma<typename Load::Act, kN>(sum, tiles.t[1], tile_operand(x, c * 64 + 32), true);
      wgmma_commit();
      fresh = false;
      wgmma_wait<1>();
      if (c == 0 && s > 0) pipe.release_last();
    }
    pipe.advance();
  }
  wgmma_wait<0>();
  pipe.release_last();
  if (turn == 0) return;
  LORRY_UNROLL
  for (int i = 0; i < kN / 4; ++i) sum[i] = first[i] + sum[i];
  each_sum<kN>(sums, 1, [&](float* place, int i) { sum[i] = *place + sum[i]; });
}

// The scales of a thread's two outputs.
struct Scales {
  float of[2] = {1.0F, 1.0F};

  LORRY_DEVICE Scales(const LinearArgs& a, const PromptTile& t) {
    if (a.plan.scales == 0) return;
    const auto* scales =
        reinterpret_cast<const float*>(row_block(a, t, warp_index()) + a.plan.scales_offset());
    of[0] = scales[lane_index() / 4];
    of[1] = scales[lane_index() / 4 + 8];
  }
};

// Multiplies and stores a tile of at most kN rows.
template <class Load, int kN>
LORRY_DEVICE void finish_tile(const LinearArgs& a, const PromptTile& t, Pipe& pipe) {
  const int group = warp_index() / 4;
  const bool gated = a.glu.y != nullptr;
  float* sums = pipe.sums + group * kHalf;
  Barrier* meeting = pipe.meeting + (gated ? 2 : group);
  float sum[kN / 2] = {};  // else the registers of all widths would be taken all the time
  multiply_rows<Load, kN>(a, pipe, sums, sum);
  const Scales scale(a, t);
  LORRY_UNROLL
  for (int half = 0; half < 2; ++half) {
    each_sum<kN>(sums, half, [&](float* place, int i) { *place = sum[i] * scale.of[i % 4 / 2]; });
    meet(meeting, 0);
    const PromptTile rows = t.half(half, kN / 2);
    if (gated) {
      store_gated<typename Load::Act>(a, pipe.sums, pipe.sums + kHalf, rows);
    } else {
      store_sums(a, sums, rows, group);
    }
    meet(meeting, 1);
  }
}

// The multiplying threads' work. More widths than these need more registers than there are.
template <class Load>
LORRY_DEVICE void multiply_tiles(const PromptArgs& args, Pipe pipe) {
  for (TileWalk walk(args); walk.more(); walk.advance()) {
    const PromptTile t = walk.tile();
    if (t.rows > 176) {
      finish_tile<Load, 192>(args.linear, t, pipe);
    } else if (t.rows > 128) {
      finish_tile<Load, 176>(args.linear, t, pipe);
    } else if (t.rows > 64) {
      finish_tile<Load, 128>(args.linear, t, pipe);
    } else {
      finish_tile<Load, 64>(args.linear, t, pipe);
    }
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

// Rows of a tile: fewer where there would be less than one for each cluster, and those with which
// the clusters are done first where all rows have the same weights.
inline int32_t widest_tile(const LinearArgs& a, int64_t columns, int64_t clusters) {
  int32_t rows = kWidest;
  while (rows > 64 && columns * (ceil_div(a.rows, rows / 2) + a.groups - 1) <= clusters) rows /= 2;
  if (a.groups > 1 || rows < kWidest) return rows;
  constexpr int64_t kOfATile = 16;  // what a tile takes beside its rows, in rows
  constexpr int32_t kWidths[] = {192, 176, 128};
  int64_t least = INT64_MAX;
  for (const int32_t width : kWidths) {
    const int64_t waves = ceil_div(columns * ceil_div(a.rows, width), clusters);
    if (waves * (width + kOfATile) >= least) continue;
    least = waves * (width + kOfATile);
    rows = width;
  }
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
