// Ops: everything a model may ask of a device; one subclass per backend. Outputs come first.
// A call allocates nothing and keeps no state: scratch is passed in, plans are made once per step.
//
// Shapes: T rows of the batch, D model dim, H query heads, K key/value heads, d head dim, E
// experts, k experts per token, F expert width. "act" is the type that linears read: bf16, f16, or
// f32 in exactness mode; every plain weight, the KV cache in KvFormat::act and every act tensor of
// a model have the same type.
//
// Bits: an output element depends on its own row and the weights alone, never on the other rows of
// the call, the number of threads or the instruction set. Each is one accumulator summed in order
// of k (bf16: within a pair the odd element first, as vdpbf16ps does; denormals are zero).
//
// Memory: a backend with memory of its own (memory() is not null) takes pointers to both: a pointer
// says where it leads. What is in the processor's memory is copied for the call, there and back;
// what is used more than once belongs on the device. Structs and spans of them are the processor's,
// but for Route's segments.
//
// Thread: one thread calls; the backend's threads work inside the call.
#pragma once
#include <cstdint>
#include <limits>
#include <span>

#include "base/memory.h"
#include "lorry/tensor.h"
#include "ops/lora.h"

namespace lorry {

constexpr bool is_act(Dtype t) { return t == Dtype::bf16 || t == Dtype::f16 || t == Dtype::f32; }

struct Norm {
  Tensor weight;  // [D] f32
  float eps = 1e-5F;
  bool centered = false;  // false: RMSNorm; true: LayerNorm without bias
};

// How the values of a weight are stored. plain: as act. The others: q, a whole number (fp8: a value
// in e4m3), for scale * (q - zero) (fp8: scale * q).
struct WeightFormat {
  enum class Kind : uint8_t { plain, int8, int4, fp8 };
  Kind kind = Kind::plain;
  // Inputs that share a scale (f16), a multiple of 32; 0: all of an output's (f32). int8 and int4.
  int32_t group = 0;
  bool zeros = false;  // each scale has a zero point of its own; otherwise it is 128, or 8
  friend bool operator==(const WeightFormat&, const WeightFormat&) = default;

  bool plain() const { return kind == Kind::plain; }
  int64_t scales(int64_t in) const { return group == 0 ? 1 : (in + group - 1) / group; }
};

// One Linear [out, in], or `groups` of them (experts), packed by Ops::pack.
// gate_up: the rows of gate and up interleaved by 64 (gate rows 0..63, up rows 0..63, gate 64..127,
// ...), both padded with zero rows to a multiple of 64, so that out = 2 * round_up(F, 64).
struct Weight {
  std::byte* data = nullptr;
  Dtype dtype = Dtype::bf16;  // of the x it is multiplied by: act
  WeightFormat format;
  int64_t groups = 1;
  int64_t out = 0, in = 0;
  int64_t group_bytes = 0;
  // Not plain, of a checkpoint that sorted its inputs (act-order): packed input k of group g is
  // input order[g * in + k] of x. Null: they are in order. int8 and int4.
  const int32_t* order = nullptr;
};

// Rows of a matrix that is quantised already, inputs in packed order (Weight::order).
struct QuantRows {
  Tensor q;      // u8 [n, in]: int8 0 ... 255, int4 0 ... 15, fp8 the bytes
  Tensor scale;  // f32 [n, WeightFormat::scales(in)]
  Tensor zero;   // u8 as scale; no data without WeightFormat::zeros
};

// Rows [first, first + n) of a Linear in group `group` of a weight that is packed already, and of
// its inputs those from `input` on; where scales are of groups of inputs, that is where one begins.
// Row o is output column + o / 64 * panel_stride + o % 64 of it.
struct PackedRows {
  Weight from;  // not plain, inputs in the order of x
  int64_t group = 0, column = 0, panel_stride = 64;
  int64_t first = 0, n = 0, input = 0;

  int64_t column_of(int64_t o) const { return column + o / 64 * panel_stride + o % 64; }
  // Of rows [o, n): as many as lie side by side in a panel.
  int64_t side_by_side(int64_t o) const {
    const int64_t in_panel = 64 - column_of(first + o) % 64;
    return n - o < in_panel ? n - o : in_panel;
  }
};

// Rows sorted by group: group g owns rows [begin[g], begin[g+1]). A dense linear has one group.
struct RowGroups {
  std::span<const int32_t> begin;  // [groups + 1]
};

enum class Activation : uint8_t { silu, gelu_tanh, gelu_erf };

// A linear, and the adapters of some of its rows.
struct AdaptedLinear {
  const Weight& w;
  RowGroups groups;
  std::span<const LoraSite> sites;
  std::span<const LoraSegment> segments;  // none: no row has an adapter
  const LoraPlan& plan;
  Tensor scratch, lora_scratch;  // of linear and of adapt
};

struct Routing {
  int32_t top_k = 1;
  // Divide the k chosen probabilities by their p-norm; 0: leave them as they are.
  float norm_p = 1.0F;
};

// The experts of each row. route() fills expert and weight, group() the rest. A rank may have only
// some of the experts (own): the choices of others have no sorted row.
struct Route {
  Tensor expert;   // i32 [T, k], in order of falling probability
  Tensor weight;   // f32 [T, k]
  Tensor slot;     // i32 [T, k]: the sorted row that holds (t, j); -1: none does
  Tensor source;   // i32 [T * k]: the row t of each sorted row
  Tensor begin;    // i32 [E + 1]: the sorted rows of each own expert
  Tensor segment;  // u8: storage for LoraSegment [T * k]: the sorted rows by (expert, adapter)
  // On a device an upper bound: those that are not needed are empty, and last.
  int32_t n_segments = 0;
  int32_t experts = 0;
  bool on_device = false;            // all of it lies in the backend's memory; every expert is own
  int32_t first_own = 0, n_own = 0;  // n_own 0: all of them

  int32_t groups_count() const { return n_own == 0 ? experts : n_own; }
  RowGroups groups() const {
    return {{begin.row<const int32_t>(0), static_cast<size_t>(groups_count()) + 1}};
  }
  // Sorted rows.
  int64_t n_rows() const {
    return on_device ? source.shape.size() : begin.row<const int32_t>(0)[groups_count()];
  }
  std::span<const LoraSegment> segments() const {
    return {reinterpret_cast<const LoraSegment*>(segment.data), static_cast<size_t>(n_segments)};
  }
};

constexpr int32_t kBlockTokens = 16;   // tokens of one KV block
constexpr int32_t kSplitTokens = 256;  // attention splits: keys [256 i, 256 (i + 1)) of a sequence
constexpr int32_t kPanel = 64;         // output rows of one weight panel

// One layer's keys and values: [blocks, K, block bytes] in the backend's own block layout.
struct KvLayer {
  Tensor k, v;
};

// How keys and values are stored. act: in the type that linears read. int8: each head of a token by
// itself, symmetrically: q, and one f32 scale = max|x| / 127, for q * scale.
enum class KvFormat : uint8_t { act, int8 };

struct AttentionSpec {
  int32_t heads = 0, kv_heads = 0, head_dim = 0;
  int32_t window = 0;  // 0: none; W: position p sees p-W+1 ... p
  KvFormat kv = KvFormat::act;
};

// The sequences of a batch. Rows [q_begin[s], q_begin[s+1]) are the last positions of sequence s:
// row i of them has position kv_len[s] - (number of rows) + i.
struct AttentionPlan {
  std::span<const int32_t> q_begin;      // [S + 1]
  std::span<const int32_t> kv_len;       // [S], after this step's tokens
  std::span<const int32_t> block_table;  // [S, max_blocks]; entries before the window may be -1
  int32_t max_blocks = 0;
  Tensor scratch;  // u8, Ops::attention_scratch_bytes
};

class Ops {
 public:
  virtual ~Ops() = default;

  // ---- load time; const members may be called from any thread ----
  virtual Dtype act() const = 0;
  // Where weights, images, caches and step buffers lie; null: in the processor's memory.
  virtual DeviceMemory* memory() const { return nullptr; }
  // Describes the packed form of `groups` Linears [out, in]; data is null.
  virtual Weight weight_layout(int64_t groups, int64_t out, int64_t in,
                               WeightFormat format = {}) const = 0;
  // Where the pages of memory come from that nothing was written to yet, on a machine with several
  // NUMA nodes: a weight's from the nodes whose threads will read them; others', which all threads
  // use alike, from all nodes in turn. Elsewhere nothing. Requires: they are pages of a Buffer that
  // begins there.
  virtual void place(const Weight&) const {}
  virtual void spread(std::byte*, size_t /*bytes*/) const {}
  // Rows [first, first + n) of group g from src [n, in] (f32, f16 or bf16, any pitch), rounded to
  // act, or quantised as the weight's format says: each row and group of inputs by itself,
  // symmetrically; with a value that is not finite, to NaN. Inputs of src are in the order of x.
  // interleaved: as one of gate and up, 64 rows of every 128; `first` is then 0 or 64.
  virtual void pack(Weight& w, int64_t group, int64_t first, Tensor src,
                    bool interleaved = false) = 0;
  // The same rows as they were quantised elsewhere. Requires: a format that is not plain.
  virtual void pack(Weight& w, int64_t group, int64_t first, const QuantRows& src,
                    bool interleaved = false) = 0;
  // The same rows, and w.in of their inputs, as they are packed in a weight of the same format.
  // Requires: a group of inputs that ends here ends there, or w has the last input.
  virtual void pack(Weight& w, int64_t group, int64_t first, const PackedRows& src,
                    bool interleaved = false) = 0;
  // One Linear [out, in] whole, as a group of weight_layout(1, out, in, format); on the calling
  // thread.
  virtual void pack_matrix(std::byte* dst, Tensor src, WeightFormat format = {}) const = 0;
  // y [n, in] f32 <- rows [first, first + n) of group g, as linear() multiplies by them, inputs in
  // the order of x; on the calling thread.
  virtual void unpack(Tensor y, const Weight& w, int64_t group, int64_t first) const = 0;
  // Fills a weight with random values of mean 0 and variance 1 / in, where the backend can make
  // them faster than the processor can pack them; false: it cannot, and nothing was done. For
  // synthetic models of published sizes.
  virtual bool randomise(Weight&, uint64_t /*seed*/) { return false; }
  // A [rank, in] and B [out, rank] of one LoRA pair; bytes, then packing from f32/f16/bf16.
  virtual size_t lora_a_bytes(int64_t rank, int64_t in) const = 0;
  virtual size_t lora_b_bytes(int64_t out, int64_t rank) const = 0;
  virtual void pack_lora_a(std::byte* dst, Tensor a) const = 0;
  virtual void pack_lora_b(std::byte* dst, Tensor b) const = 0;
  // One layer's K or V for `blocks` blocks: shape and dtype with a null data pointer.
  virtual Tensor kv_layout(int64_t blocks, const AttentionSpec& spec) const = 0;
  virtual size_t attention_scratch_bytes(int64_t max_rows, const AttentionSpec& spec) const = 0;
  // Bytes that linear needs for up to `rows` rows of up to `in` inputs.
  virtual size_t linear_scratch_bytes(int64_t rows, int64_t in) const = 0;
  // f32 elements that adapt needs for `rows` rows, `sites` sites and ranks up to max_rank.
  static int64_t lora_scratch_size(int64_t rows, int64_t sites, int64_t max_rank) {
    return rows * sites * ((max_rank + 15) / 16 * 16);
  }

  // ---- every step ----
  // y [T, D] f32 <- rows ids [T] i32 of table [V, D] (act); zeros where id < 0. Requires: id < V.
  virtual void embed(Tensor y, Tensor table, Tensor ids) = 0;
  // y [T, D] act <- x [T, D] f32, normalised in f32.
  virtual void norm(Tensor y, Tensor x, const Norm& n) = 0;
  // y [T, out] f32 <- x [T, in] act times W of each row's group, transposed. scratch: u8,
  // linear_scratch_bytes; a plain weight is multiplied without it too, to the same bits, but
  // perhaps more slowly.
  // int8, int4 with act bf16 or f16: row r of x becomes xq = rint(x * (127 / max|x|)), s = max|x| /
  // 127; sums over the inputs of one scale are exact; f = fma(sum_g, scale_g, f) in order of g; y =
  // f s. A row that is not finite gives NaN. fp8, and everything with act f32: the values are
  // widened and multiplied as those of a plain weight are; fp8 is scaled at the end.
  virtual void linear(Tensor y, Tensor x, const Weight& w, const RowGroups& groups,
                      Tensor scratch) = 0;
  // y [T, *] f32 <- what the patch of each segment's adapter makes of it, for the rows of the
  // segment and each site of the linear: W' x in place of W x, + scale * B (A x), * gain, then the
  // single outputs. scratch: f32, lora_scratch_size.
  virtual void adapt(Tensor y, Tensor x, std::span<const LoraSite> sites,
                     std::span<const LoraSegment> segments, const LoraPlan& plan,
                     Tensor scratch) = 0;
  // y [T, out] f32 <- linear(), then adapt() for the segments: the same bits, perhaps in one pass.
  virtual void apply(Tensor y, Tensor x, const AdaptedLinear& l) {
    linear(y, x, l.w, l.groups, l.scratch);
    if (!l.segments.empty()) adapt(y, x, l.sites, l.segments, l.plan, l.lora_scratch);
  }
  // apply(), and best [T] i32 <- the place of each row's largest value, as arg_max (scores.h) finds
  // it.
  virtual void apply_best(Tensor best, Tensor y, Tensor x, const AdaptedLinear& l) = 0;
  // y [n, F] act <- glu() of what apply() makes. both: memory for that, f32 [n, l.w.out]; what it
  // holds afterwards is the backend's business.
  virtual void apply_glu(Tensor y, Tensor both, Tensor x, const AdaptedLinear& l,
                         Activation activation) {
    apply(both, x, l);
    glu(y, both, activation);
  }
  // As adapt() for y [T, D] f32 that embed() made of ids [T]; rows with an id < 0 are left alone.
  // site: in = V, out = D.
  virtual void adapt_embedding(Tensor y, Tensor ids, const LoraSite& site,
                               std::span<const LoraSegment> segments, const LoraPlan& plan,
                               Tensor scratch) = 0;
  // x [T, n] f32 to [-limit, limit], in place.
  virtual void clamp(Tensor x, float limit) = 0;
  // x [T, heads * d] f32 rotated in place, halves a, b of each head: (a cos - b sin, b cos + a
  // sin); cos, sin [T, d / 2] f32.
  virtual void rope(Tensor x, Tensor cos, Tensor sin) = 0;
  // Stores k, v [T, K * d] f32 (rounded to act, or quantised; a head of a token that is not finite
  // to NaN) at slots [T] i32 (block * 16 + offset; < 0: not).
  virtual void kv_write(const KvLayer& kv, Tensor k, Tensor v, Tensor slots,
                        const AttentionSpec& spec) = 0;
  // For qkv [T, (H + 2 K) * d] f32: clamp(), rope() of its queries and keys, and kv_write() of its
  // keys and values: the same bits, perhaps in one pass. What becomes of the keys and values in qkv
  // is the backend's business.
  virtual void rope_write(const KvLayer& kv, Tensor qkv, float limit, Tensor cos, Tensor sin,
                          Tensor slots, const AttentionSpec& spec);
  // o [T, H * d] act <- softmax(q k^T / sqrt(d)) v, causal, for q [T, H * d] f32. Keys and values
  // in bf16: q and the probabilities are rounded to bf16 for the products; int8: they are f32. Sums
  // are f32.
  virtual void attention(Tensor o, Tensor q, const KvLayer& kv, const AttentionPlan& plan,
                         const AttentionSpec& spec) = 0;
  // route.expert, route.weight <- softmax over scores [T, E] f32, the k largest (ties: the lower
  // expert), normalised as `routing` says.
  virtual void route(Route& route, Tensor scores, const Routing& routing) = 0;
  // Sorts the (row, choice) of own experts by (expert, adapter, row): slot, source, begin, segment,
  // n_segments. The group of a segment counts from the first own expert.
  virtual void group(Route& route, const LoraPlan& plan) = 0;
  // y [n, D] <- rows index [n] i32 of x; same dtype.
  virtual void gather(Tensor y, Tensor x, Tensor index) = 0;
  // route(), group(), and gather() of the sorted rows of x [T, D] into the first rows of
  // y [T * k, D]: the same bits, perhaps in one pass.
  virtual void dispatch(Route& route, Tensor y, Tensor x, Tensor scores, const Routing& routing,
                        const LoraPlan& plan);
  // y [n, F] act <- act(gate) * up, for gu [n, 2 * round_up(F, 64)] f32 interleaved by 64.
  virtual void glu(Tensor y, Tensor gu, Activation activation) = 0;
  // y [T, D] f32 <- sum over j (in order) of route.weight[t, j] * d[route.slot[t, j]], d f32,
  // without those that have no slot.
  virtual void combine(Tensor y, Tensor d, const Route& route) = 0;
  // x [T, D] f32 += the sum of `parts`, each [T, D] f32, which are added up in their order first.
  virtual void add(Tensor x, std::span<const Tensor> parts) = 0;
  // y [T, D] act <- norm() of x after add(): the same bits, perhaps in one pass.
  virtual void add_norm(Tensor y, Tensor x, std::span<const Tensor> parts, const Norm& n) {
    add(x, parts);
    norm(y, x, n);
  }
  // combine() into z, and add_norm() of z: the same bits, perhaps in one pass. What z holds
  // afterwards is the backend's business.
  virtual void combine_norm(Tensor y, Tensor x, Tensor z, Tensor d, const Route& route,
                            const Norm& n) {
    combine(z, d, route);
    add_norm(y, x, {&z, 1}, n);
  }
  // y [T, D] act <- x + silu(v + bias), x [T, D] act, v [T, D] f32, bias [D] f32. y may be x.
  virtual void add_silu(Tensor y, Tensor x, Tensor v, Tensor bias) = 0;
};

}  // namespace lorry
