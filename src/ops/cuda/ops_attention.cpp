// attention: tiles of rows, and whether a warp takes a tile or one unit of its keys.
#include "ops/cuda/backend.h"
#include "ops/cuda/cuda_ops.h"

namespace lorry::cuda {

namespace {

// With fewer tiles than this (times heads) the device is not full, and units go to warps of their
// own. Either way gives the same bits.
constexpr int64_t kManyTiles = 2048;

}  // namespace

Tensor CudaOps::kv_layout(int64_t blocks, const AttentionSpec& spec) const {
  LORRY_CHECK(spec.head_dim <= kCudaMaxHeadDim,
              "heads of {}: the CUDA backend has kernels up to 256", spec.head_dim);
  if (spec.kv == KvFormat::int8) {
    return view(nullptr, Dtype::i8, {blocks, spec.kv_heads, kBlockTokens * (spec.head_dim + 4)});
  }
  const int64_t width = has_16_bits() ? head_width(spec.head_dim) : spec.head_dim;
  return view(nullptr, act_, {blocks, spec.kv_heads, kBlockTokens * width});
}

// Results of units; where they do not fit, tiles take their units one after the other.
size_t CudaOps::attention_scratch_bytes(int64_t, const AttentionSpec& spec) const {
  return static_cast<size_t>(has_16_bits() && spec.kv == KvFormat::act ? kUnitResultBytes : 64);
}

// tiles_: of the rows; units_: the same, one entry for each unit.
void CudaOps::plan_tiles(const AttentionPlan& plan, const AttentionSpec& spec, int tile_heads) {
  tiles_.clear();
  units_.clear();
  const int32_t per_tile = std::max(1, kTileQueries / tile_heads);
  int32_t slots = 0;
  for (size_t s = 0; s < plan.kv_len.size(); ++s) {
    const int32_t n = plan.q_begin[s + 1] - plan.q_begin[s];
    const int32_t start = plan.kv_len[s] - n;
    for (int32_t i = 0; i < n; i += per_tile) {
      AttentionTile t{};
      t.row = plan.q_begin[s] + i;
      t.positions = std::min(per_tile, n - i);
      t.position = start + i;
      t.sequence = static_cast<int32_t>(s);
      const int32_t low = spec.window > 0 ? std::max(0, t.position - spec.window + 1) : 0;
      t.unit = low / kUnitKeys;
      t.n_units = (t.position + t.positions - 1) / kUnitKeys + 1 - t.unit;
      t.first_slot = slots;
      slots += t.n_units;
      tiles_.push_back(t);
      for (int32_t u = 0; u < t.n_units; ++u) {
        units_.push_back(t);
        units_.back().unit += u;
      }
    }
  }
}

// Tiles that do nothing behind those of each sequence, up to a whole block.
void CudaOps::fill_blocks() {
  units_.clear();
  for (const AttentionTile& t : tiles_) {
    while (!units_.empty() && units_.back().sequence != t.sequence &&
           units_.size() % kTilesOfBlock != 0) {
      add_idle_tile();
    }
    units_.push_back(t);
  }
  while (units_.size() % kTilesOfBlock != 0) add_idle_tile();
  tiles_.swap(units_);
}

void CudaOps::add_idle_tile() {
  AttentionTile idle = units_.back();
  idle.positions = 0;
  idle.n_units = 0;
  units_.push_back(idle);
}

void CudaOps::attention(Tensor o, Tensor q, const KvLayer& kv, const AttentionPlan& plan,
                        const AttentionSpec& spec) {
  if (q.rows() == 0) return;
  Call call(memory_, staging_);
  const int32_t per_head = spec.heads / spec.kv_heads;
  const bool tiled = has_16_bits() && spec.kv == KvFormat::act;
  AttentionArgs a{};
  a.tile_heads =
      tiled ? std::min(per_head, kTileQueries) : kTileQueries;  // plain: tiles of one row
  a.head_tiles = static_cast<int32_t>(div_up(per_head, a.tile_heads));
  plan_tiles(plan, spec, a.tile_heads);
  a.o = call.out(o);
  a.o_pitch = o.pitch;
  a.q = call.in<float>(q);
  a.q_pitch = q.pitch;
  a.k = call.in<unsigned char>(kv.k);
  a.v = call.in<unsigned char>(kv.v);
  a.block_bytes = kv.k.cols() * size_of(kv.k.dtype);
  a.table = call.in(plan.block_table);
  a.max_blocks = plan.max_blocks;
  a.heads = spec.heads;
  a.kv_heads = spec.kv_heads;
  a.head_dim = spec.head_dim;
  a.window = spec.window;
  a.n_tiles = static_cast<int32_t>(tiles_.size());
  if (!tiled) {
    a.tiles = tile_table_.put(call, memory_, tiles_);
    return attention_plain(call.stream(), a, kv_type(spec), type());
  }
  const int64_t heads = int64_t{a.kv_heads} * a.head_tiles;
  const int64_t results = static_cast<int64_t>(units_.size()) * heads * kTileQueries *
                          (head_width(spec.head_dim) + 2) * 4;
  const bool by_units = units_.size() > tiles_.size() && a.n_tiles * heads < kManyTiles &&
                        results <= plan.scratch.shape.size() - 16;
  if (!by_units) {
    fill_blocks();
    a.tiles = tile_table_.put(call, memory_, tiles_);
    a.n_tiles = static_cast<int32_t>(tiles_.size());
    return attention_mma(call.stream(), a, type(), false);
  }
  a.tiles = unit_table_.put(call, memory_, units_);
  a.n_tiles = static_cast<int32_t>(units_.size());
  const auto at = reinterpret_cast<uintptr_t>(call.out(plan.scratch));
  a.results = reinterpret_cast<float*>((at + 15) / 16 * 16);
  a.counts = reinterpret_cast<int32_t*>(unit_counts_.data());
  attention_mma(call.stream(), a, type(), true);
}

}  // namespace lorry::cuda
