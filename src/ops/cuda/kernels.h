// What the host asks of the kernels: for each a struct of arguments and a function that starts it
// on a stream. All pointers are device memory. Pitches are in elements.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "ops/cuda/layout.h"

namespace lorry::cuda {

using Stream = void*;

// The type of activations: what linears read.
enum class Act : uint8_t { bf16, f16, f32 };

// ---- rows.cu ----

struct EmbedArgs {
  float* y;
  int64_t y_pitch;
  const void* table;
  int64_t table_pitch;
  const int32_t* ids;
  int64_t rows, cols;
};
void embed(Stream s, const EmbedArgs& a, Act act);

struct CombineArgs {
  float* y;
  int64_t y_pitch;
  const float* d;
  int64_t d_pitch;
  const int32_t* slot;
  const float* weight;
  int64_t slot_pitch, weight_pitch;
  int64_t rows, cols;
  int32_t k;
};
void combine(Stream s, const CombineArgs& a);

struct NormArgs {
  void* y;
  int64_t y_pitch;
  const float* x;
  int64_t x_pitch;
  // x as well, where its sum with `part`, or with what `experts` combine to, goes; null: neither.
  float* sum;
  const float* part;
  int64_t part_pitch;
  CombineArgs experts;  // y is not written; without d: part
  const float* weight;
  int64_t rows, cols;
  float eps;
  bool centered;
};
void norm(Stream s, const NormArgs& a, Act act);

struct GatherArgs {
  unsigned char* y;
  const unsigned char* x;
  int64_t y_pitch, x_pitch;  // bytes
  const int32_t* index;
  int64_t rows, bytes;
};
void gather(Stream s, const GatherArgs& a);

struct GluArgs {
  void* y;
  int64_t y_pitch;
  const float* gu;
  int64_t gu_pitch, rows, cols;
  int activation;  // as lorry::Activation
};
void glu(Stream s, const GluArgs& a, Act act);

struct AddArgs {
  float* x;
  int64_t x_pitch;
  const float* y;
  int64_t y_pitch, rows, cols;
};
void add(Stream s, const AddArgs& a);

// y [n] = all [ranks, n], summed over the ranks in their order.
struct SumRanksArgs {
  float* y;
  const float* all;
  int64_t n;
  int32_t ranks;
};
void sum_ranks(Stream s, const SumRanksArgs& a);

struct AddSiluArgs {
  void* y;
  int64_t y_pitch;
  const void* x;
  int64_t x_pitch;
  const float* v;
  int64_t v_pitch;
  const float* bias;
  int64_t rows, cols;
};
void add_silu(Stream s, const AddSiluArgs& a, Act act);

// ---- scores.cu ----

struct BestArgs {
  int32_t* best;
  const float* scores;
  int64_t pitch, rows, cols;
};
void find_best(Stream s, const BestArgs& a);

// ---- heads.cu ----

struct ClampArgs {
  float* x;
  int64_t pitch, rows, cols;
  float limit;
};
void clamp(Stream s, const ClampArgs& a);

struct RopeArgs {
  float* x;
  int64_t pitch;
  const float* cos;
  const float* sin;
  int64_t cos_pitch, sin_pitch;
  int64_t rows, cols, half;
};
void rope(Stream s, const RopeArgs& a);

enum class KvType : uint8_t { bf16, f16, f32, int8 };
struct KvWriteArgs {
  unsigned char* k;
  unsigned char* v;
  int64_t block_bytes;  // of one head
  const float* k_rows;
  const float* v_rows;
  int64_t k_pitch, v_pitch;
  const int32_t* slots;
  int32_t rows, kv_heads, head_dim;
};
void kv_write(Stream s, const KvWriteArgs& a, KvType type);

struct RopeWriteArgs {
  RopeArgs rope;      // x: the queries, keys and values
  KvWriteArgs write;  // without rows of its own
  int32_t heads;      // of queries
  float limit;        // of what clamp leaves
};
void rope_write(Stream s, const RopeWriteArgs& a, KvType type);

// ---- routing.cu ----

struct RouteArgs {
  const float* scores;
  int64_t scores_pitch;
  int32_t* expert;
  float* weight;
  int64_t expert_pitch, weight_pitch;
  int32_t rows, experts, k;
  float norm_p;
};
constexpr int32_t kMaxExperts = 1024;
void route(Stream s, const RouteArgs& a);

struct Segment {  // as lorry::LoraSegment
  int32_t begin, end, adapter, group;
};
struct GroupArgs {
  const int32_t* expert;
  int64_t expert_pitch;
  const int32_t* row_adapter;  // null: no row has one
  int32_t* slot;
  int64_t slot_pitch;
  int32_t* source;
  int32_t* begin;
  Segment* segments;  // filled up to max_segments, those behind the last begin and end at n
  int32_t* n_segments;
  int32_t rows, k, first_own, groups, max_segments;
};
void group(Stream s, const GroupArgs& a);

// All of it, and the sorted rows of x, for few rows.
struct DispatchArgs {
  RouteArgs route;
  GroupArgs group;  // without experts of its own
  GatherArgs rows;  // without an index
};
constexpr int64_t kFewChoices = 256;
constexpr int32_t kFewExperts = 64;
void dispatch(Stream s, const DispatchArgs& a);

// ---- random.cu ----

struct RandomArgs {
  unsigned char* w;  // row blocks
  WeightPlan plan;
  int64_t blocks;
  uint64_t seed;
};
// Values and scales of packed weights; no zero points.
void randomise(Stream s, const RandomArgs& a);

// ---- linear*.cu, quantise.cu, quant*.cu ----

// Where gate(x) * up(x) goes, in the type of x, in place of both of them (outputs interleaved by
// 64).
struct GluOut {
  void* y;  // null: nowhere, the linear's outputs are wanted
  int64_t pitch, cols;
  int activation;  // as lorry::Activation
};
struct LinearArgs {
  Act act;  // of x
  float* y;
  int64_t y_pitch;
  const void* x;
  int64_t x_pitch;
  const unsigned char* w;
  WeightPlan plan;
  int64_t group_bytes;
  const int32_t* begin;  // [groups + 1]; null: one group of all rows
  const int32_t* order;  // [groups, in], or null
  int32_t rows, out, groups;
  GluOut glu;
  // Of linear_wide: room for x as layout.h says, arranged_bytes at a multiple of kTileRowBytes.
  unsigned char* arranged;
  int32_t processors;  // of the device
};
// Rows that a group has as likely as not, no more: the kernels are chosen by it.
constexpr int64_t expected_rows(const LinearArgs& a) {
  return a.groups == 1 ? a.rows : 2 * ((int64_t{a.rows} + a.groups - 1) / a.groups);
}
// Whether the tensor cores multiply values and x as they are, once fp8 is widened.
constexpr bool is_plain_or_fp8(const LinearArgs& a) {
  return is_16_bits(a.plan.values) || a.plan.values == Values::fp8;
}
// Rows of x in decode; with more the wide kernels are faster. With so few linear_mma does glu too.
constexpr int64_t kFewRows = 16;
constexpr bool has_few_rows(const LinearArgs& a) {
  return is_plain_or_fp8(a) && expected_rows(a) <= kFewRows;
}
// Groups that may have rows.
constexpr int64_t groups_with_rows(const LinearArgs& a) {
  return a.groups < a.rows ? a.groups : a.rows;
}
// x of 16 bits, values of its type or fp8. Both give the same bits; wide: for many rows, on Hopper.
void linear_mma(Stream s, const LinearArgs& a);
void linear_wide(Stream s, const LinearArgs& a);
// The part of linear_wide that multiplies more than 64 rows, arranged ones.
void linear_prompt(Stream s, const LinearArgs& a);
void linear_prompt_fp8(Stream s, const LinearArgs& a);
// The same for few outputs, as a router has: however many rows, always this one, since its bits are
// others.
constexpr int32_t kThinOutputs = 64;
constexpr bool is_thin(const LinearArgs& a) { return is_plain_or_fp8(a) && a.out <= kThinOutputs; }
void linear_thin(Stream s, const LinearArgs& a);
// x f32, any values.
void linear_f32(Stream s, const LinearArgs& a);

// Rows of xq end with zeros at a multiple of so many inputs.
constexpr int64_t kQuantised = 4 * kChunk;
struct QuantArgs {
  LinearArgs linear;  // x of 16 bits, values s8 or s4
  int8_t* xq;         // [rows, quantised_pitch], where place_in_xq says
  float* scale;       // [rows]
  int32_t* sums;      // [scales, rows], where there are zero points
  bool wide;          // linear_quant: the device has wgmma; else xq is for quant_wide.cu
};
constexpr int64_t quantised_pitch(const WeightPlan& p) {
  return (p.in + kQuantised - 1) / kQuantised * kQuantised;
}
// xq, scale and sums from x.
void quantise_rows(Stream s, const QuantArgs& a);
// Of quantised rows; all have the same bits. decode: for few rows, as is_quant_decode says; it does
// glu too. wide: for many rows, on Hopper, of weights with one scale or groups of whole kQuantised
// inputs.
bool is_quant_decode(const LinearArgs& a);
void quant_decode(Stream s, const QuantArgs& a);
void quant_wide(Stream s, const QuantArgs& a);
// Quantises, and multiplies with the kernel that fits. glu: only where is_quant_decode.
void linear_quant(Stream s, const QuantArgs& a);

// ---- lora.cu, shrink.cu, change.cu ----

// What an adapter does at one site of one group.
struct Patch {
  const void* a;
  const void* b;
  const unsigned char* weight;
  const float* gain;
  const int32_t* tokens;
  const unsigned char* token_rows;
  float scale;
  int32_t rank, n_tokens;
};
struct PatchSite {
  int64_t column, panel_stride;
  int32_t in, out;
};
constexpr int kMaxSites = 4;
// The pair of a row at one site. Rank 0: none.
struct alignas(16) RowPair {
  const void* b;
  int32_t rank;
};
struct AdaptArgs {
  float* y;
  int64_t y_pitch;
  const void* x;
  int64_t x_pitch;
  const Segment* segments;
  int32_t n_segments, rows;
  const Patch* patches;  // [adapters, groups, sites]
  int32_t groups, sites, max_rank, max_out, max_tokens;
  PatchSite site[kMaxSites];
  float* t;  // [sites, rows, pitch]
  int64_t t_pitch;
  bool early;     // segments are not made by a kernel that may still run
  bool clusters;  // the device has them
  // Where a linear adds the pairs to its own sums:
  RowPair* pairs;   // [sites, rows]; null: another kernel adds them
  uint32_t* ready;  // becomes `turn`, another number each time, as soon as x can be read
  uint32_t turn;
};
void replace_outputs(Stream s, const AdaptArgs& a, bool tokens, Act act);
// t = scale * A x, and pairs.
void shrink(Stream s, const AdaptArgs& a, Act act);
void add_pairs(Stream s, const AdaptArgs& a, Act act);
void scale_outputs(Stream s, const AdaptArgs& a);

// Of few rows linear_mma, or linear_thin, and the pairs of its rows, to the bits of add_pairs: two
// kernels that run side by side. The one sums t and says which pair a row has; the other begins
// with the weights when the first says that x is there, and waits for its end before it adds.
struct AdaptedLinearArgs {
  LinearArgs linear;
  AdaptArgs adapt;  // y: none
};
constexpr int64_t kMostRowPairs = 8192;  // of sites and rows
void linear_adapted(Stream s, const AdaptedLinearArgs& a);

struct AdaptEmbeddingArgs {
  AdaptArgs adapt;  // x: none
  const int32_t* ids;
};
void adapt_embedding(Stream s, const AdaptEmbeddingArgs& a, Act act);

// ---- attention.cu, attention_plain.cu ----

// Rows of the batch that a warp works on: `positions` of them, of one sequence.
struct AttentionTile {
  int32_t row, positions;
  int32_t position;  // of the first row
  int32_t sequence;
  int32_t unit;        // by units: the unit; else the first one
  int32_t n_units;     // of the tile
  int32_t first_slot;  // by units: where the tile's results begin, in units
};
constexpr int kUnitKeys = 64;     // keys whose softmax is made at once
constexpr int kTileQueries = 16;  // query rows of a tile: of the tensor cores
constexpr int64_t kUnitResultBytes = int64_t{16} << 20;  // room for what units make
// Units times heads whose results fit: the narrowest heads are of 8.
constexpr size_t kMostUnitHeads = kUnitResultBytes / (kTileQueries * (8 + 2) * 4);
constexpr int kTilesOfBlock = 4;  // in prompts, tiles that share what they read: of one sequence
struct AttentionArgs {
  void* o;
  int64_t o_pitch;
  const float* q;
  int64_t q_pitch;
  const unsigned char* k;
  const unsigned char* v;
  int64_t block_bytes;  // of one head
  const int32_t* table;
  int32_t max_blocks;
  const AttentionTile* tiles;
  int32_t n_tiles;
  int32_t heads, kv_heads, head_dim, window;
  int32_t tile_heads, head_tiles;  // heads of a tile, tiles of a KV head's heads
  float* results;                  // by units: [slots, kv_heads * head_tiles, 16, head width + 2]
  int32_t* counts;                 // by units: [slots, kv_heads * head_tiles], zeros, and left so
};
// Keys, values and o in `act`, of 16 bits; head_dim <= 256. by_units: one unit a block; else each
// kTilesOfBlock tiles are of one sequence, some perhaps without units and positions.
void attention_mma(Stream s, const AttentionArgs& a, Act act, bool by_units);
// Keys and values in f32 or int8, o as act; tiles of one row.
void attention_plain(Stream s, const AttentionArgs& a, KvType type, Act act);

}  // namespace lorry::cuda
