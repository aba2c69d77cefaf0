// The weights of a block of quant_decode.cu on their way into shared memory.
//
// What a block multiplies is passes, each a row block by a tile of rows. The inputs of a pass are
// cut into pieces, most often those of one scale, which the warps share in turn. A warp copies its
// pieces unit by unit into a ring of its own that runs on from pass to pass, and the scales and
// zero points of a pass come along with them.
#pragma once
#include "ops/cuda/device.h"
#include "ops/cuda/kernels.h"

namespace lorry::cuda {

constexpr int kDecodeWarps = 4;
constexpr int kDecodeThreads = 32 * kDecodeWarps;
constexpr int kTileSums = kRowBlock * 8;  // of a piece and 8 rows
constexpr int kRoundTiles = 16;           // whose sums lie in shared memory at once

// How inputs are cut. scales: a piece is a unit; one_scale: all units are whole; with both each
// warp has some. any: a piece may have several units, the last one with fewer chunks, and a warp
// none.
enum class Cut { scales, one_scale, any };

// kUnit: chunks that are copied and waited for at once, all of one piece. kN x 8 rows. kRing: bytes
// of a warp's ring.
template <class Load_, int kUnit_, int kN_, int kRing_, Cut kCut_>
struct DecodeShape {
  using Load = Load_;
  static constexpr Cut kCut = kCut_;
  static constexpr int kUnit = kUnit_;
  static constexpr int kN = kN_;
  static constexpr int kRing = kRing_;
  static constexpr int kPlace = kUnit * Load::kBytes;
  static constexpr int kPlaces = kRing / kPlace;
  static_assert(kRing % kPlace == 0);
  static constexpr int kRound = kRoundTiles / kN;  // pieces
  static constexpr int kSums = kTileSums * kN;
};

// With one scale: a piece for each warp, whose sums are added as they are.
struct Pieces {
  int chunks;  // of the row block
  int per;     // chunks of a piece
  int count;
  bool one;

  LORRY_DEVICE Pieces(const WeightPlan& p, int unit)
      : chunks(static_cast<int>(p.chunks())), per(p.group / kChunk), count(p.scales) {
    one = p.scales == 1;
    if (!one) return;
    count = kDecodeWarps;
    per = (chunks + kDecodeWarps * unit - 1) / (kDecodeWarps * unit) * unit;
  }
  LORRY_DEVICE int end_of(int first) const { return first + per < chunks ? first + per : chunks; }
  // The warp has no piece. It goes through its ring like the others, with a unit of nothing a pass.
  template <class S>
  LORRY_DEVICE bool idle() const {
    return S::kCut == Cut::any && warp_index() * per >= chunks;
  }
  template <class S>
  LORRY_DEVICE bool is_one() const {
    return S::kCut == Cut::any ? one : S::kCut == Cut::one_scale;
  }
};

// The chunks of a warp in a pass, which has every kDecodeWarps-th piece, a unit after the other,
// and from the beginning again.
template <class S>
struct Walk {
  static constexpr int kStep = S::kCut == Cut::scales ? kDecodeWarps * S::kUnit : S::kUnit;
  int chunk;  // of the unit
  int end;    // of its piece; where a piece is a unit: of all

  LORRY_DEVICE explicit Walk(const Pieces& p) { begin(p); }
  // Whether a pass ends here.
  LORRY_DEVICE bool next(const Pieces& p) {
    chunk += kStep;
    if (chunk < end) return false;
    if constexpr (S::kCut == Cut::any) {
      chunk = end + (kDecodeWarps - 1) * p.per;
      end = p.end_of(chunk);
      if (chunk < p.chunks) return false;
    }
    begin(p);
    return true;
  }

 private:
  LORRY_DEVICE void begin(const Pieces& p) {
    if constexpr (S::kCut == Cut::scales) {
      chunk = warp_index() * S::kUnit;
      end = p.chunks;
    } else {
      chunk = warp_index() * p.per;
      end = p.end_of(chunk);
    }
  }
};

// Row block after row block, each by all tiles; with glu a tile has the row block of gate, then
// that of up.
struct Passes {
  const unsigned char* w;  // of the group
  int block_bytes;
  int first;   // row block; with glu: of gate alone
  int blocks;  // so many
  int tiles;
  bool glu;

  LORRY_DEVICE int of_a_tile() const { return glu ? 2 : 1; }
  LORRY_DEVICE int count() const { return blocks * tiles * of_a_tile(); }
  LORRY_DEVICE const unsigned char* weights(int pass) const {
    const int tile = glu ? pass >> 1 : pass;
    const int block = first + (tiles == 1 ? tile : tile / tiles);
    const int at = glu ? static_cast<int>(gate_block(block)) + (pass & 1) * kGluBlocks : block;
    return w + int64_t{at} * block_bytes;
  }
};

// Scales and zero points of so many passes, those of pass n at n % count.
struct Sides {
  unsigned char* at;  // shared memory
  int bytes;          // of a pass
  int offset;         // in a row block
  int count;
};

// The weights of a warp on their way.
template <class S>
struct DecodeRing {
  const Pieces& pieces;
  const Passes& passes;
  const Sides& sides;
  unsigned char* last;  // place of the unit multiplied last: where the lane copies to
  unsigned char* end;   // of places
  const unsigned char* block = nullptr;
  Walk<S> walk;
  int left;  // passes, the present one among them
  int side = 0;

  LORRY_DEVICE DecodeRing(const Pieces& p, const Passes& all, const Sides& s, unsigned char* ring)
      : pieces(p),
        passes(all),
        sides(s),
        last(ring + lane_index() * 16 + S::kRing - S::kPlace),
        end(ring + lane_index() * 16 + S::kRing),
        walk(p),
        left(all.count()) {
    enter();
    for (int i = 0; i < S::kPlaces - 1; ++i) copy(end - S::kRing + i * S::kPlace);
  }
  // The lane's part of the next unit, until the call after. With the first of a pass the thread's
  // part of the scales and zero points is there.
  LORRY_DEVICE const unsigned char* next() {
    wait_copies<S::kPlaces - 2>();
    sync_warp();  // the lanes' copies are there for all, and the last unit has been read
    copy(last);
    last += S::kPlace;
    if (last == end) last -= S::kRing;
    return last + lane_index() * (static_cast<int>(sizeof(typename S::Load::Raw)) - 16);
  }

 private:
  LORRY_DEVICE void copy(unsigned char* to) {
    if (left > 0) {
      const unsigned char* unit = block + int64_t{walk.chunk} * S::Load::kBytes;
      const int bytes = (walk.end - walk.chunk) * S::Load::kBytes - lane_index() * 16;
      LORRY_UNROLL
      for (int b = 0; b < S::kPlace; b += 512) {
        if (S::kPlace < 512 && lane_index() * 16 >= S::kPlace) break;
        if (S::kCut != Cut::any || b < bytes) copy_async(to + b, unit + b);
      }
      if (walk.next(pieces) && --left > 0) enter();
    }
    commit_copies();
  }
  // A pass: its scales and zero points come with the unit that is committed next.
  LORRY_DEVICE void enter() {
    const unsigned char* from = passes.weights(passes.count() - left);
    block = from + lane_index() * 16;
    const int first = static_cast<int>(threadIdx.x) * 16;
    from += sides.offset + first;
    unsigned char* own = sides.at + side * sides.bytes + first;
    for (int more = sides.bytes - first; more > 0; more -= kDecodeThreads * 16) {
      copy_async(own, from);
      own += kDecodeThreads * 16;
      from += kDecodeThreads * 16;
    }
    side = side + 1 == sides.count ? 0 : side + 1;
  }
};

}  // namespace lorry::cuda
