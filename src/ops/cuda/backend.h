// CudaOps: looks at where tensors are, makes the arguments of kernels and starts them. One file per
// family of operations: pack, pack_quant, ops_rows, ops_heads, ops_route, ops_linear, ops_adapt,
// ops_apply, ops_attention.
#pragma once
#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "base/thread_pool.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/memory.h"
#include "ops/ops.h"

namespace lorry::cuda {

constexpr int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

WeightPlan plan_of(const WeightFormat& format, Dtype act, int64_t in);
inline WeightPlan plan_of(const Weight& w) { return plan_of(w.format, w.dtype, w.in); }

// What one call reads and writes, on the device. What lies in the processor's memory is copied: in
// at once, out when the call ends.
class Call {
 public:
  Call(CudaMemory& memory, Staging& staging) : memory_(memory), staging_(staging) {
    staging_.next_call();
  }
  ~Call() { finish(); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Null stays null.
  const void* in(const void* p, size_t bytes);
  void* out(void* p, size_t bytes);
  template <class T>
  const T* in(const T* p, int64_t n) {
    return static_cast<const T*>(
        in(static_cast<const void*>(p), static_cast<size_t>(n) * sizeof(T)));
  }
  template <class T>
  const T* in(std::span<const T> s) {
    return in(s.data(), static_cast<int64_t>(s.size()));
  }
  // From the first element to the last; the bytes between rows are kept.
  template <class T = std::byte>
  const T* in(const Tensor& t) {
    return static_cast<const T*>(in(static_cast<const void*>(t.data), extent(t)));
  }
  template <class T = std::byte>
  T* out(const Tensor& t) {
    return static_cast<T*>(out(static_cast<void*>(t.data), extent(t)));
  }
  bool on_device(const void* p) const { return memory_.contains(p); }
  // Room on the device for the length of the call; a part of it may be filled on the host.
  Staging::Room room(size_t bytes) { return staging_.take(bytes); }
  void fetch(const Staging::Room& r) { staging_.fetch(r); }
  // Copies back what was written. The destructor does it too.
  void finish();
  Stream stream() const { return memory_.stream(); }

 private:
  static size_t extent(const Tensor& t) {
    const int64_t rows = t.rows();
    if (rows == 0 || t.cols() == 0) return 0;
    return static_cast<size_t>(((rows - 1) * t.pitch + t.cols()) * size_of(t.dtype));
  }

  struct Copy {
    void* to;
    Staging::Room room;
  };
  CudaMemory& memory_;
  Staging& staging_;
  std::vector<Copy> out_;
};

// A table that stays on the device from call to call: what a step's plan says is the same for all
// layers, and often for the next step.
class Table {
 public:
  // Where the values are; they are sent if they are not those of the last call.
  template <class T>
  const T* put(Call& call, CudaMemory& memory, const std::vector<T>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    if (device_.data() == nullptr || !std::ranges::equal(bytes, last_)) send(call, memory, bytes);
    return reinterpret_cast<const T*>(device_.data());
  }

 private:
  void send(Call& call, CudaMemory& memory, std::span<const std::byte> bytes);

  std::vector<std::byte> last_;
  Buffer device_;
};

// The patches of one linear, as long as the adapters of the batch are the same.
struct PatchTable {
  std::vector<SitePatch> made_from;
  std::vector<Patch> patches;
  bool stays = false;  // nothing in it is copied for a single call
  Table table;
};

class CudaOps final : public Ops {
 public:
  CudaOps(Dtype act, ThreadPool& pool)
      : act_(act),
        pool_(pool),
        wide_(has_wgmma()),
        processors_(device_facts().processors),
        staging_(memory_),
        unit_counts_(kMostUnitHeads * sizeof(int32_t), &memory_),
        row_pairs_(kMostRowPairs * sizeof(RowPair), &memory_),
        ready_(sizeof(uint32_t), &memory_) {}

  Dtype act() const override { return act_; }
  DeviceMemory* memory() const override { return &memory_; }
  Weight weight_layout(int64_t groups, int64_t out, int64_t in, WeightFormat format) const override;
  void pack(Weight& w, int64_t group, int64_t first, Tensor src, bool interleaved) override;
  void pack(Weight& w, int64_t group, int64_t first, const QuantRows& src,
            bool interleaved) override;
  void pack(Weight& w, int64_t group, int64_t first, const PackedRows& src,
            bool interleaved) override;
  void pack_matrix(std::byte* dst, Tensor src, WeightFormat format) const override;
  void unpack(Tensor y, const Weight& w, int64_t group, int64_t first) const override;
  bool randomise(Weight& w, uint64_t seed) override;
  size_t lora_a_bytes(int64_t rank, int64_t in) const override;
  size_t lora_b_bytes(int64_t out, int64_t rank) const override;
  void pack_lora_a(std::byte* dst, Tensor a) const override;
  void pack_lora_b(std::byte* dst, Tensor b) const override;
  Tensor kv_layout(int64_t blocks, const AttentionSpec& spec) const override;
  size_t attention_scratch_bytes(int64_t max_rows, const AttentionSpec& spec) const override;
  size_t linear_scratch_bytes(int64_t rows, int64_t in) const override;

  void embed(Tensor y, Tensor table, Tensor ids) override;
  void norm(Tensor y, Tensor x, const Norm& n) override;
  void linear(Tensor y, Tensor x, const Weight& w, const RowGroups& groups,
              Tensor scratch) override;
  void apply(Tensor y, Tensor x, const AdaptedLinear& l) override;
  void apply_best(Tensor best, Tensor y, Tensor x, const AdaptedLinear& l) override;
  void apply_glu(Tensor y, Tensor both, Tensor x, const AdaptedLinear& l,
                 Activation activation) override;
  void adapt(Tensor y, Tensor x, std::span<const LoraSite> sites,
             std::span<const LoraSegment> segments, const LoraPlan& plan, Tensor scratch) override;
  void adapt_embedding(Tensor y, Tensor ids, const LoraSite& site,
                       std::span<const LoraSegment> segments, const LoraPlan& plan,
                       Tensor scratch) override;
  void clamp(Tensor x, float limit) override;
  void rope(Tensor x, Tensor cos, Tensor sin) override;
  void kv_write(const KvLayer& kv, Tensor k, Tensor v, Tensor slots,
                const AttentionSpec& spec) override;
  void rope_write(const KvLayer& kv, Tensor qkv, float limit, Tensor cos, Tensor sin, Tensor slots,
                  const AttentionSpec& spec) override;
  void attention(Tensor o, Tensor q, const KvLayer& kv, const AttentionPlan& plan,
                 const AttentionSpec& spec) override;
  void route(Route& route, Tensor scores, const Routing& routing) override;
  void group(Route& route, const LoraPlan& plan) override;
  void gather(Tensor y, Tensor x, Tensor index) override;
  void dispatch(Route& route, Tensor y, Tensor x, Tensor scores, const Routing& routing,
                const LoraPlan& plan) override;
  void glu(Tensor y, Tensor gu, Activation activation) override;
  void combine(Tensor y, Tensor d, const Route& route) override;
  void add(Tensor x, std::span<const Tensor> parts) override;
  void add_norm(Tensor y, Tensor x, std::span<const Tensor> parts, const Norm& n) override;
  void combine_norm(Tensor y, Tensor x, Tensor z, Tensor d, const Route& route,
                    const Norm& n) override;
  void add_silu(Tensor y, Tensor x, Tensor v, Tensor bias) override;

 private:
  Act type() const {
    return act_ == Dtype::bf16 ? Act::bf16 : act_ == Dtype::f16 ? Act::f16 : Act::f32;
  }
  bool has_16_bits() const { return size_of(act_) == 2; }
  KvType kv_type(const AttentionSpec& spec) const {
    return spec.kv == KvFormat::int8 ? KvType::int8
           : act_ == Dtype::bf16     ? KvType::bf16
           : act_ == Dtype::f16      ? KvType::f16
                                     : KvType::f32;
  }
  // Writes to `dst`, wherever it is.
  void put(std::byte* dst, const std::byte* from, size_t bytes) const;
  template <class F>
  void pack_rows(const Weight& w, int64_t group, int64_t first, int64_t n, bool interleaved,
                 F&& f) const;
  void get(std::byte* to, const std::byte* src, size_t bytes) const;
  struct PatchSizes;
  Patch patch_of(Call& call, const SitePatch& from, const PatchSizes& size) const;
  const Segment* segments_of(Call& call, std::span<const LoraSegment> segments);
  template <class F>
  PatchTable& patches_of(Call& call, const LoraSite* key, F&& make);
  // Of a matrix that pack_matrix packed.
  int64_t plain_bytes(int64_t out, int64_t in) const {
    return weight_layout(1, out, in, {}).group_bytes;
  }
  void want_patches(std::span<const LoraSite> sites, std::span<const LoraSegment> segments,
                    const LoraPlan& plan);
  // Returns the patches.
  const std::vector<Patch>& fill_tables(AdaptArgs& a, Call& call, std::span<const LoraSite> sites,
                                        std::span<const LoraSegment> segments);
  static void fill_sums(AdaptArgs& a, Call& call, const Tensor& scratch);
  enum class Extra : uint8_t { none, pairs, changes };
  Extra extra_of(const Tensor& x, const AdaptedLinear& l);
  AdaptArgs pairs_of(Call& call, const LinearArgs& linear, const AdaptedLinear& l);
  void plan_tiles(const AttentionPlan& plan, const AttentionSpec& spec, int tile_heads);
  void fill_blocks();
  void add_idle_tile();

  std::byte* scratch_of(Call& call, const Tensor& scratch) const;
  // What a linear is, without memory; then all but where the results go.
  LinearArgs linear_shape(const Tensor& x, const Weight& w) const;
  LinearArgs linear_args(Call& call, const Tensor& x, const Weight& w, const RowGroups& groups,
                         const Tensor& scratch) const;
  // Of weights in int8 and int4, with x of 16 bits.
  QuantArgs quant_args(Call& call, const LinearArgs& a, const Tensor& scratch) const;
  // Whether linear_wide multiplies them.
  bool is_wide(const LinearArgs& a, const Tensor& scratch) const;

  const Dtype act_;
  ThreadPool& pool_;
  const bool wide_;  // linear_wide is there
  const int32_t processors_;
  mutable CudaMemory memory_;
  mutable Staging staging_;
  // Lists: contents live for one call, the memory for good.
  std::vector<SitePatch> wanted_;
  int32_t wanted_groups_ = 0;
  std::vector<Segment> segments_;
  std::vector<AttentionTile> tiles_, units_;
  Table tile_table_, unit_table_, segment_table_;
  Buffer unit_counts_;  // of attention by units: zeros between two calls
  Buffer row_pairs_;    // of the linear that runs
  Buffer ready_;        // AdaptArgs::ready
  uint32_t turn_ = 0;
  std::unordered_map<const LoraSite*, PatchTable> patch_tables_;  // of linears, and the embedding
};

}  // namespace lorry::cuda
