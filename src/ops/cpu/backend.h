// CpuOps: spreads each operation over the pool and calls the kernels. One file per family of
// operations: pack, linear, quant_pack, quant_linear, lora, change, apply, attention, routing,
// rows.
#pragma once
#include <algorithm>
#include <array>
#include <vector>

#include "base/error.h"
#include "base/task_counters.h"
#include "base/thread_pool.h"
#include "ops/cpu/flush_denormals.h"
#include "ops/cpu/kernels.h"
#include "ops/ops.h"

namespace lorry::cpu {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

QuantLayout layout_of(const WeightFormat& format, int64_t in);  // Requires: not plain

// Rows [first, first + n) of src, in memory: those of a mapped file have been read.
Tensor loaded_rows(Tensor src, int64_t first, int64_t n);

// Query rows of one KV head: `positions` rows of the batch, times the heads of the group.
struct AttentionTile {
  int32_t sequence, kv_head;
  int32_t row, position, positions;  // first row of the batch, its position, how many
  int64_t cost;
};

// Where rows go that are packed: from row `first` on, side by side or 64 of every 128.
struct RowPlace {
  int64_t first, n;
  bool interleaved;
};

// Rows [row, row + n) of the source are columns column ... of a panel; `last`: of the outputs.
struct PanelRows {
  int64_t panel, column, row, n;
  bool last;
};

struct LoraTask {
  const SitePatch* patch;
  int32_t site;
  int32_t row, rows;
  int32_t panel, panels;
};

class CpuOps final : public Ops {
 public:
  CpuOps(Dtype act, ThreadPool& pool, const Kernels& kernels)
      : act_(act),
        pool_(pool),
        tasks_(pool),
        kernels_(kernels),
        act_kernels_(act == Dtype::bf16  ? kernels.bf16
                     : act == Dtype::f16 ? kernels.f16
                                         : kernels.f32) {}

  Dtype act() const override { return act_; }
  Weight weight_layout(int64_t groups, int64_t out, int64_t in, WeightFormat format) const override;
  void place(const Weight& w) const override;
  void spread(std::byte* at, size_t bytes) const override;
  void pack(Weight& w, int64_t group, int64_t first, Tensor src, bool interleaved) override;
  void pack(Weight& w, int64_t group, int64_t first, const QuantRows& src,
            bool interleaved) override;
  void pack(Weight& w, int64_t group, int64_t first, const PackedRows& src,
            bool interleaved) override;
  void pack_matrix(std::byte* dst, Tensor src, WeightFormat format) const override;
  void unpack(Tensor y, const Weight& w, int64_t group, int64_t first) const override;
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
  void adapt(Tensor y, Tensor x, std::span<const LoraSite> sites,
             std::span<const LoraSegment> segments, const LoraPlan& plan, Tensor scratch) override;
  void apply(Tensor y, Tensor x, const AdaptedLinear& l) override;
  void apply_best(Tensor best, Tensor y, Tensor x, const AdaptedLinear& l) override;
  void apply_glu(Tensor y, Tensor both, Tensor x, const AdaptedLinear& l,
                 Activation activation) override;
  void adapt_embedding(Tensor y, Tensor ids, const LoraSite& site,
                       std::span<const LoraSegment> segments, const LoraPlan& plan,
                       Tensor scratch) override;
  void clamp(Tensor x, float limit) override;
  void rope(Tensor x, Tensor cos, Tensor sin) override;
  void kv_write(const KvLayer& kv, Tensor k, Tensor v, Tensor slots,
                const AttentionSpec& spec) override;
  void attention(Tensor o, Tensor q, const KvLayer& kv, const AttentionPlan& plan,
                 const AttentionSpec& spec) override;
  void route(Route& route, Tensor scores, const Routing& routing) override;
  void group(Route& route, const LoraPlan& plan) override;
  void gather(Tensor y, Tensor x, Tensor index) override;
  void glu(Tensor y, Tensor gu, Activation activation) override;
  void combine(Tensor y, Tensor d, const Route& route) override;
  void add(Tensor x, std::span<const Tensor> parts) override;
  void add_norm(Tensor y, Tensor x, std::span<const Tensor> parts, const Norm& n) override;
  void add_silu(Tensor y, Tensor x, Tensor v, Tensor bias) override;

 private:
  // Rows of one group that pass over each panel together.
  struct Chunk {
    int32_t group, begin, rows;
  };
  // A chunk and a panel; `next`: the one that the thread takes afterwards, or null.
  struct PanelTask {
    const Chunk& chunk;
    int64_t column;
    const std::byte *panel, *next;
    int thread;
  };
  // The x of a linear as its kernel reads it.
  struct LinearRows {
    const Weight& w;
    MatmulArgs plain{};
    QuantArgs quant{};
    void (*quant_kernel)(const QuantArgs&) = nullptr;  // null: plain
    int64_t row_bytes = 0;                             // of x
  };
  // t = scale * A x of pairs: [sites, rows, pitch].
  struct PairSums {
    float* at;
    int64_t rows, pitch;
    float* of(const LoraTask& t) const { return at + (t.site * rows + t.row) * pitch; }
  };

  int64_t element() const { return size_of(act_); }
  void norm_row(Tensor y, Tensor x, const Norm& n, int64_t r) const;
  void add_row(Tensor x, std::span<const Tensor> parts, int64_t r) const;
  // k of a packed row: pairs of bf16 and f16 are complete.
  int64_t padded(int64_t in) const { return element() == 2 ? round_up(in, 2) : in; }
  int64_t panel_bytes(int64_t in) const { return padded(in) * kPanel * element(); }
  void pack_panel(std::byte* panel, Tensor src, int64_t column, bool last) const;
  void plan_linear(const RowGroups& groups);
  void pack_quantised(Weight& w, int64_t group, const RowPlace& place, Tensor src);
  void quantise_panel(std::byte* panels, const QuantLayout& l, Tensor src, const PanelRows& p,
                      const int32_t* order) const;
  void read_row(float* to, Tensor src, int64_t r, const int32_t* order) const;
  void unpack_quantised(Tensor y, const Weight& w, int64_t group, int64_t first) const;
  LinearRows rows_of(Tensor x, const Weight& w, const RowGroups& groups, Tensor scratch);
  void read_quantised(LinearRows& in, Tensor x, const RowGroups& groups, Tensor scratch);
  static int64_t columns_of(const PanelTask& t, const Weight& w) {
    return std::min<int64_t>(kPanel, w.out - t.column);
  }
  void multiply(const LinearRows& in, const PanelTask& t, Tensor y) const;
  void quantise_rows(QuantArgs& q, Tensor x, const Weight& w, const RowGroups& groups,
                     Tensor scratch);
  Tensor order_rows(Tensor x, const Weight& w, const RowGroups& groups, Tensor scratch);
  static const int32_t* order_of(const Weight& w, const RowGroups& groups, int64_t row);
  bool plan_pairs(const AdaptedLinear& l);
  void apply_panel(const LinearRows& in, const PanelTask& t, Tensor y, const AdaptedLinear& l,
                   const PairSums& sums) const;
  template <class F>
  void each_pair(const PanelTask& t, std::span<const LoraSite> sites, F&& f) const;
  PairSums pair_sums(Tensor x, std::span<const LoraSite> sites, Tensor scratch) const;
  PairSums shrink_all(Tensor x, const AdaptedLinear& l);
  void shrink(const LoraTask& t, Tensor x, const LoraSite& site, const PairSums& sums) const;
  void plan_patches(std::span<const LoraSite> sites, std::span<const LoraSegment> segments,
                    const LoraPlan& plan);
  void plan_change(const SitePatch& patch, int32_t site, const LoraSegment& segment);
  void plan_expand(std::span<const LoraSite> sites, bool whole);
  template <class Outputs, class F>
  void each_panel(Outputs&& outputs, F&& f);
  void multiply_panel(const LoraTask& t, Tensor x, const std::byte* weight, Tensor y, int64_t cols);
  void replace(Tensor y, Tensor x, std::span<const LoraSite> sites);
  void add_pairs(Tensor y, Tensor x, std::span<const LoraSite> sites, Tensor scratch);
  void scale(Tensor y, std::span<const LoraSite> sites);
  void replace_outputs(Tensor y, Tensor x, std::span<const LoraSite> sites);
  void adapt_token(Tensor y, float* t, int32_t id, const SitePatch& patch);
  struct Attend;
  void plan_attention(const AttentionPlan& plan, const AttentionSpec& spec);
  int64_t heads_of_task(int64_t kv_heads, int64_t tasks) const;
  void attend_by_splits(const Attend& a, std::byte* scratch, int64_t rows);

  // f(task, thread) for every task in [0, n), on all threads, denormals flushed.
  template <class F>
  void parallel(int64_t n, F&& f) {
    if (n <= 1 || pool_.size() == 1) {
      const FlushDenormals flush;
      for (int64_t i = 0; i < n; ++i) f(i, 0);
      return;
    }
    pool_.for_each_thread(n, [&f](int64_t task, int thread) {
      const FlushDenormals flush;
      f(task, thread);
    });
  }

  // f(PanelRows) for all rows of a place, on all threads.
  template <class F>
  void each_packed_panel(const RowPlace& place, int64_t out, F&& f) {
    const int64_t offset = place.first % kPanel;
    pool_.for_each(ceil_div(offset + place.n, kPanel), [&](int64_t task) {
      PanelRows p{};
      p.panel = place.first / kPanel + (place.interleaved ? 2 * task : task);
      p.column = task == 0 ? offset : 0;
      p.row = task == 0 ? 0 : task * kPanel - offset;
      p.n = std::min(place.n - p.row, kPanel - p.column);
      p.last = p.panel * kPanel + p.column + p.n == out;
      f(p);
    });
  }

  // f(task, next, thread) for every task in [0, n), on all threads; next: the task that the same
  // thread takes afterwards, or -1, so that it can prefetch.
  template <class F>
  void parallel_ahead(int64_t n, F&& f) {
    tasks_.deal(n);
    work_ahead(f);
  }

  // As dealt.
  template <class F>
  void work_ahead(F&& f) {
    const auto work = [&](int thread) {
      const FlushDenormals flush;
      tasks_.work(thread, [&](int64_t task, int64_t next) { f(task, next, thread); });
    };
    tasks_.size() <= 1 ? work(0) : pool_.run(work);
  }

  // f(PanelTask) for all rows of a linear, on all threads, the groups with most rows first; of
  // every `step` panels the first. Panels go to the threads of the node that place() gave them.
  template <class F>
  void each_chunk_panel(const Weight& w, const RowGroups& groups, int64_t step, F&& f) {
    const int64_t panels = ceil_div(w.out, kPanel);
    const int64_t tasks = panels / step;
    const int64_t bytes = w.group_bytes / panels;
    plan_linear(groups);
    const auto panel_of = [&](int64_t task) {
      const Chunk& c = chunks_[static_cast<size_t>(task / tasks)];
      return w.data + c.group * w.group_bytes + task % tasks * step * bytes;
    };
    tasks_.deal_by_node(static_cast<int64_t>(chunks_.size()), tasks);
    work_ahead([&](int64_t task, int64_t next, int thread) {
      f(PanelTask{chunks_[static_cast<size_t>(task / tasks)], task % tasks * step * kPanel,
                  panel_of(task), next < 0 ? nullptr : panel_of(next), thread});
    });
  }

  // f(row) for rows of `elements` each; short work stays on the calling thread.
  template <class F>
  void parallel_rows(int64_t rows, int64_t elements, F&& f) {
    constexpr int64_t kTaskElements = 16384;
    const int64_t step = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, elements));
    parallel(ceil_div(rows, step), [&](int64_t task, int) {
      const int64_t end = std::min(rows, (task + 1) * step);
      for (int64_t r = task * step; r < end; ++r) f(r);
    });
  }

  const Dtype act_;
  ThreadPool& pool_;
  TaskCounters tasks_;
  const Kernels& kernels_;
  const ActKernels& act_kernels_;
  // Lists of tasks: contents live for one call, the memory for good.
  std::vector<Chunk> chunks_;
  std::vector<LoraTask> lora_tasks_, panel_tasks_, change_tasks_;
  std::vector<AttentionTile> tiles_;
  std::vector<int32_t> counts_, order_;
  std::vector<RowTop> tops_;
};

}  // namespace lorry::cpu
