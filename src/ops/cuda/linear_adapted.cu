// Linears of few rows that add the pairs of adapters to their own sums.
#include "ops/cuda/decode.h"
#include "ops/cuda/launch.h"

namespace lorry::cuda {

namespace {

// Where an output of the linear is; site -1: none has it.
struct Place {
  int site;
  int32_t o;
};
LORRY_DEVICE Place place_of(const AdaptArgs& a, int64_t column) {
  Place place{-1, 0};
  LORRY_UNROLL
  for (int s = 0; s < kMaxSites; ++s) {
    if (s >= a.sites) break;
    const PatchSite& site = a.site[s];
    const auto from = static_cast<int32_t>(column - site.column);
    const auto stride = static_cast<int32_t>(site.panel_stride);
    const int32_t o = from / stride * kPanelB + from % stride;
    if (from >= 0 && from % stride < kPanelB && o < site.out) place = {s, o};
  }
  return place;
}

// What a row's pair does to one output: n ranks of B, kPanelB apart, and their t.
struct Ranks {
  const uint16_t* b;
  const float* t;
  int32_t n;
};
LORRY_DEVICE Ranks ranks_of(const AdaptArgs& a, const Place& place, int32_t row, int32_t end) {
  if (place.site < 0 || row >= end) return {nullptr, nullptr, 0};
  const int64_t at = int64_t{place.site} * a.rows + row;
  const RowPair pair = a.pairs[at];
  const int64_t panel = int64_t{place.o / kPanelB} * kPanelB * pair.rank;
  return {static_cast<const uint16_t*>(pair.b) + panel + place.o % kPanelB, a.t + at * a.t_pitch,
          pair.rank};
}

LORRY_DEVICE float word_of(const Word4& four, int i) {
  return as_float(i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w);
}

// v += B t from rank `from` on, in order of the ranks, of which kAhead are loaded at once for all
// items: fewer where there are many, since more registers would be fewer blocks.
template <class T, int kItems>
LORRY_DEVICE void add_ranks(float (&v)[kItems], const Ranks (&ranks)[kItems], int32_t from = 0) {
  constexpr int kAhead = kItems > 4 ? 4 : kItems > 2 ? 8 : 16;
  int32_t most = 0;
  LORRY_UNROLL
  for (int i = 0; i < kItems; ++i) most = ranks[i].n > most ? ranks[i].n : most;
  for (int32_t first = from; first < most; first += kAhead) {
    uint16_t b[kItems][kAhead] = {};
    Word4 t[kItems][kAhead / 4] = {};
    LORRY_UNROLL
    for (int i = 0; i < kItems; ++i) {
      if (first >= ranks[i].n) continue;
      const int32_t last = ranks[i].n - 1 - first;  // loaded again in place of those beyond it
      const uint16_t* first_b = ranks[i].b + int64_t{first} * kPanelB;
      LORRY_UNROLL
      for (int r = 0; r < kAhead; ++r) b[i][r] = first_b[(r < last ? r : last) * kPanelB];
      LORRY_UNROLL
      for (int q = 0; q < kAhead / 4; ++q) {
        t[i][q] = reinterpret_cast<const Word4*>(ranks[i].t + first)[q];
      }
    }
    LORRY_UNROLL
    for (int r = 0; r < kAhead; ++r) {
      LORRY_UNROLL
      for (int i = 0; i < kItems; ++i) {
        const float own = word_of(t[i][r / 4], r % 4);
        if (first + r < ranks[i].n) v[i] = fmaf(own, T::from(b[i][r]), v[i]);
      }
    }
  }
}

// The pairs of a warp's rows, of kBlocks row blocks: while the last weights are on their way, the
// first ranks are copied to where the weights of others were, so that nothing is waited for in the
// end.
template <class Load, int kN, int kBlocks>
class NearPairs {
  static constexpr int kRowsOfWarp = 2 * kThreadRows<kN>;
  static constexpr int kItems = kBlocks * kRowsOfWarp;
  static constexpr int kRoom = ChunkRing<Load, XRows<kN>, kBlocks>::kRoom / kItems;
  static constexpr int kMost = kRoom / (2 * kRowBlock) / 4 * 4;
  static constexpr int kRanks = kMost < 16 ? kMost : 16;
  static_assert(kItems <= 32 && kRanks > 0);

  // Of a row and a row block.
  struct Item {
    Ranks all;        // of the first output
    int32_t outputs;  // of the site, from there on
    Word4 t[4];       // of the first ranks
  };

 public:
  // Of shared memory, behind what the linear takes.
  static constexpr size_t kBegin = slices_shared<Load, kN, kBlocks>();
  static constexpr size_t kBytes = kSlices * kItems * sizeof(Item);

  // Whether the device has no room for this block and all before it.
  LORRY_DEVICE static bool is_late(const LinearArgs& a) {
    constexpr size_t kMostShared = size_t{228} << 10;  // of a processor
    constexpr auto kBlocksOfProcessor = static_cast<unsigned>(kMostShared / (kBegin + kBytes));
    return blockIdx.y * gridDim.x + blockIdx.x >=
           kBlocksOfProcessor * static_cast<unsigned>(a.processors);
  }

  LORRY_DEVICE explicit NearPairs(const AdaptArgs& a)
      : a_(a), items_(reinterpret_cast<Item*>(shared_bytes() + kBegin) + warp_index() * kItems) {}

  // The tail of a warp. column: the first one, of gate if there are two row blocks.
  LORRY_DEVICE void copy(unsigned char* room, int64_t column, const Rows& rows) {
    wait_for_previous();
    b_ = room;
    const int own = lane_index();
    if (own < kItems) {
      describe(items_[own], column + own / kRowsOfWarp * kPanelB, row_of(rows, own));
    }
    sync_warp();
    const int rank = lane_index() / 2;
    const int half = lane_index() % 2 * kRowBlock / 2;
    LORRY_UNROLL
    for (int i = 0; i < kItems; ++i) {
      const Ranks& from = items_[i].all;
      if (rank >= kRanks || rank >= from.n) continue;
      copy_async(room + ((i * kRanks + rank) * kRowBlock + half) * 2,
                 from.b + rank * kPanelB + half);
    }
    const int four = lane_index() % 4;
    LORRY_UNROLL
    for (int i = lane_index() / 4; i < kItems; i += 8) {
      if (items_[i].all.n == 0) continue;
      copy_async(reinterpret_cast<unsigned char*>(items_[i].t + four), items_[i].all.t + 4 * four);
    }
  }

  // What a thread has of a row block += B t.
  LORRY_DEVICE void add(int block, float (&v)[kThreadRows<kN>]) const {
    using T = typename Load::Act;
    const int output = lane_index() % kRowBlock;
    Ranks ranks[kThreadRows<kN>];
    int32_t most = 0;
    LORRY_UNROLL
    for (int j = 0; j < kThreadRows<kN>; ++j) {
      const int i = block * kRowsOfWarp + 2 * j + lane_index() / kRowBlock;
      const Item& own = items_[i];
      const int32_t n = output < own.outputs ? own.all.n : 0;
      const auto* b = reinterpret_cast<const uint16_t*>(b_) + i * kRanks * kRowBlock + output;
      LORRY_UNROLL
      for (int r = 0; r < kRanks; ++r) {
        const float t = word_of(own.t[r / 4], r % 4);
        const float w = T::from(b[r * kRowBlock]);
        if (r < n) v[j] = fmaf(t, w, v[j]);
      }
      ranks[j] = {own.all.b + output, own.all.t, n};
      most = n > most ? n : most;
    }
    if (most > kRanks) add_ranks<T>(v, ranks, kRanks);
  }

 private:
  // Of the rows of a warp, as multiply_by_slices shares them out.
  LORRY_DEVICE static Rows row_of(const Rows& rows, int i) {
    const int nth = i % kRowsOfWarp;
    return {rows.begin + 2 * warp_index() + nth % 2 + nth / 2 * kStoredRows, rows.end};
  }
  LORRY_DEVICE void describe(Item& item, int64_t column, const Rows& row) const {
    const Place place = place_of(a_, column);
    item.all = ranks_of(a_, place, row.begin, row.end);
    item.outputs = item.all.n == 0 ? 0 : a_.site[place.site].out - place.o;
  }

  const AdaptArgs& a_;
  Item* items_;
  const unsigned char* b_ = nullptr;  // [items, kRanks, outputs]
};

// x can be read. All threads of a block call it. late: the block had to wait for another one's end,
// before which the shrink has ended.
LORRY_DEVICE void wait_for_rows(const AdaptArgs& a, bool late) {
  if (late) return wait_for_previous();
  if (threadIdx.x == 0) wait_for_flag(a.ready, a.turn);
  sync_threads();
}

template <class Load, int kN>
LORRY_KERNEL(32 * kSlices)
adapted_kernel(AdaptedLinearArgs a) {
  using Pairs = NearPairs<Load, kN, 1>;
  Pairs pairs(a.adapt);
  decode_block<Load, kN>(
      a.linear, [&] { wait_for_rows(a.adapt, Pairs::is_late(a.linear)); },
      [&](float(&v)[kThreadRows<kN>], int64_t column, Rows rows) {
        pairs.add(0, v);
        LORRY_UNROLL
        for (int j = 0; j < kThreadRows<kN>; ++j) {
          const int32_t row = rows.begin + kStoredRows * j;
          if (row < rows.end) a.linear.y[row * a.linear.y_pitch + column] = v[j];
        }
      },
      [&](unsigned char* room, const Rows& rows) {
        pairs.copy(room, int64_t{blockIdx.x} * kRowBlock, rows);
      });
  wait_for_previous();  // so that all that came before has ended when this kernel has
}

template <class Load, int kN>
LORRY_KERNEL(32 * kSlices, 6)  // for as many as find shared memory
adapted_glu_kernel(AdaptedLinearArgs a) {
  using Pairs = NearPairs<Load, kN, 2>;
  Pairs pairs(a.adapt);
  decode_glu_block<Load, kN>(
      a.linear, [&] { wait_for_rows(a.adapt, Pairs::is_late(a.linear)); },
      [&](float(&v)[2][kThreadRows<kN>], int64_t column, Rows rows) {
        LORRY_UNROLL
        for (int block = 0; block < 2; ++block) pairs.add(block, v[block]);
        store_glu<typename Load::Act, kN>(a.linear.glu, v, column, rows);
      },
      [&](unsigned char* room, const Rows& rows) {
        const int64_t column = int64_t{blockIdx.x} * kRowBlock;
        pairs.copy(room, column / 64 * 128 + column % 64, rows);
      });
  wait_for_previous();
}

template <class Load>
LORRY_KERNEL(32 * kThinWarps)
adapted_thin_kernel(AdaptedLinearArgs a) {
  thin_block<Load>(
      a.linear, [&] { wait_for_rows(a.adapt, false); },
      [&](float v, int64_t column, int32_t row) {
        wait_for_previous();
        const Ranks ranks[1] = {ranks_of(a.adapt, place_of(a.adapt, column), row, a.linear.rows)};
        float sum[1] = {v};
        add_ranks<typename Load::Act>(sum, ranks);
        a.linear.y[row * a.linear.y_pitch + column] = sum[0];
      });
  wait_for_previous();
}

template <class Load, int kN>
void decode(Stream s, const AdaptedLinearArgs& a) {
  if (a.linear.glu.y != nullptr) {
    using Pairs = NearPairs<Load, kN, 2>;
    const Grid grid{ceil_div(a.linear.glu.cols, kRowBlock), groups_with_rows(a.linear)};
    return start<AdaptedLinearArgs, adapted_glu_kernel<Load, kN>>(
        "linear_glu_adapted", grid, 32 * kSlices, Pairs::kBegin + Pairs::kBytes, s, a);
  }
  using Pairs = NearPairs<Load, kN, 1>;
  const Grid grid{ceil_div(a.linear.out, kRowBlock), groups_with_rows(a.linear)};
  start<AdaptedLinearArgs, adapted_kernel<Load, kN>>("linear_adapted", grid, 32 * kSlices,
                                                     Pairs::kBegin + Pairs::kBytes, s, a);
}

template <class Load>
void multiply(Stream s, const AdaptedLinearArgs& a) {
  if (is_thin(a.linear)) {
    return start<AdaptedLinearArgs, adapted_thin_kernel<Load>>(
        "linear_thin_adapted", thin_grid(a.linear), 32 * kThinWarps, kPartsShared, s, a);
  }
  if (expected_rows(a.linear) <= 8) return decode<Load, 1>(s, a);
  decode<Load, 2>(s, a);
}

}  // namespace

void linear_adapted(Stream s, const AdaptedLinearArgs& a) {
  shrink(s, a.adapt, a.linear.act);
  with_load(a.linear, [&](auto load) { multiply<decltype(load)>(s, a); });
}

}  // namespace lorry::cuda
