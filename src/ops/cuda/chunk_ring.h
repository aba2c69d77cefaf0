// Chunks of weights and of x on their way into shared memory while others are multiplied. A lane
// reads back what it copied itself, so that a warp needs no barrier: the ring is room for its
// registers.
#pragma once
#include "ops/cuda/device.h"
#include "ops/cuda/layout.h"

namespace lorry::cuda {

// A lane's part of a chunk of weights.
template <class Load>
LORRY_DEVICE void copy_chunk(unsigned char* to, const unsigned char* from) {
  static_assert(Load::kBytes % 512 == 0);
  LORRY_UNROLL
  for (int b = 0; b < Load::kBytes; b += 512) {
    copy_async(to + b + lane_index() * 16, from + b + lane_index() * 16);
  }
}

// Load: kBytes of a chunk of weights; kBlocks row blocks have one each. X: kBytes of a chunk of x,
// and copy(to, chunk).
template <class Load, class X, int kBlocks>
struct ChunkRing {
  // What is waited for at once; one is multiplied. Fewer where a place takes much: blocks have to
  // find room on devices with 99 KiB of shared memory.
  static constexpr int kGroups = X::kBytes >= 2048 || kBlocks > 1 ? 4 : 8;
  static constexpr int kTogether = Load::kBytes >= 1024 ? 2 : 4;  // chunks of a group
  static constexpr int kPlaces = kGroups * kTogether;
  static constexpr int kWeights = kBlocks * Load::kBytes;
  static constexpr int kPlace = kWeights + X::kBytes;
  static constexpr int kBytes = kPlaces * kPlace;   // of shared memory, of a warp
  static constexpr int kRoom = kTogether * kPlace;  // of them, what a tail has

  unsigned char* ring;  // of the warp
  const unsigned char* w;
  int64_t next_block;  // from the first row block to the second
  const X& x;

  // f(weights, x) for chunks [begin, end), in order. tail(room), once, when all chunks are on their
  // way: what it copies to kRoom bytes has arrived in the end, and lies there until the next call.
  template <class F, class Tail>
  LORRY_DEVICE void each(int begin, int end, F&& f, Tail&& tail) const {
    sync_warp();  // what the last call's tail copied has been read
    LORRY_UNROLL
    for (int g = 0; g < kGroups - 1; ++g) load(g * kTogether, begin + g * kTogether, end);
    int place = 0;
    int c = begin;
    do {
      const int next = place == 0 ? kPlaces - kTogether : place - kTogether;
      const int ahead = c + (kGroups - 1) * kTogether;
      if (ahead >= end && (ahead - kTogether < end || c == begin)) tail(ring + next * kPlace);
      load(next, ahead, end);
      wait_copies<kGroups - 1>();
      LORRY_UNROLL
      for (int i = 0; i < kTogether; ++i) {
        const unsigned char* at = ring + (place + i) * kPlace;
        if (c + i < end) f(at, at + kWeights);
      }
      place = place + kTogether == kPlaces ? 0 : place + kTogether;
      c += kTogether;
    } while (c < end);
    wait_copies<0>();
  }

 private:
  // A group of chunks from `first` on.
  LORRY_DEVICE void load(int place, int first, int end) const {
    LORRY_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      if (first + i >= end) break;
      unsigned char* to = ring + (place + i) * kPlace;
      const unsigned char* from = w + int64_t{first + i} * Load::kBytes;
      LORRY_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        copy_chunk<Load>(to + b * Load::kBytes, from + b * next_block);
      }
      x.copy(to + kWeights, first + i);
    }
    commit_copies();
  }
};

}  // namespace lorry::cuda
