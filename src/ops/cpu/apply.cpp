// apply, apply_best, apply_glu: what follows a linear is done to a panel's results while they are
// in the cache. First all shrinks; then each task of the linear adds the expands of its rows and
// outputs. What adapters do beside their pairs goes through linear, adapt and glu, one after the
// other.
#include <limits>

#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

// Of the site, the panel of 64 outputs that begins at a linear's output column; or -1.
int64_t panel_at(const LoraSite& site, int64_t column) {
  const int64_t from = column - site.column;
  const bool is_one = from >= 0 && from % site.panel_stride == 0 &&
                      from / site.panel_stride < ceil_div(site.out, kPanel);
  return is_one ? from / site.panel_stride : -1;
}

}  // namespace

// Whether there is nothing but pairs, whose panels are the linear's.
bool CpuOps::plan_pairs(const AdaptedLinear& l) {
  plan_patches(l.sites, l.segments, l.plan);
  panel_tasks_.clear();
  for (const LoraTask& t : lora_tasks_) {
    if (t.panel == 0) panel_tasks_.push_back(t);
  }
  return change_tasks_.empty() &&
         std::all_of(l.sites.begin(), l.sites.end(), [](const LoraSite& s) {
           return s.column % kPanel == 0 && s.panel_stride % kPanel == 0;
         });
}

// f(pair, panel of its site) for what is added to a task's results.
template <class F>
void CpuOps::each_pair(const PanelTask& t, std::span<const LoraSite> sites, F&& f) const {
  // Their rows ascend.
  auto pair =
      std::partition_point(panel_tasks_.begin(), panel_tasks_.end(),
                           [&](const LoraTask& p) { return p.row + p.rows <= t.chunk.begin; });
  for (; pair != panel_tasks_.end() && pair->row < t.chunk.begin + t.chunk.rows; ++pair) {
    const int64_t panel = panel_at(sites[static_cast<size_t>(pair->site)], t.column);
    if (panel >= 0) f(*pair, panel);
  }
}

// y [rows of the task, its columns].
void CpuOps::apply_panel(const LinearRows& in, const PanelTask& t, Tensor y, const AdaptedLinear& l,
                         const PairSums& sums) const {
  const auto b_of = [&](const LoraTask& pair, int64_t panel) {
    return pair.patch->b + panel * kPanel * pair.patch->rank * element();
  };
  // On its way while the linear is computed.
  each_pair(t, l.sites, [&](const LoraTask& pair, int64_t panel) {
    const std::byte* b = b_of(pair, panel);
    for (int64_t i = 0; i < kPanel * pair.patch->rank * element(); i += 64) {
      __builtin_prefetch(b + i, 0, 2);
    }
  });
  multiply(in, t, y);
  each_pair(t, l.sites, [&](LoraTask pair, int64_t panel) {
    const int32_t first = std::max(pair.row, t.chunk.begin);
    pair.rows = std::min(pair.row + pair.rows, t.chunk.begin + t.chunk.rows) - first;
    pair.row = first;
    const int64_t out = l.sites[static_cast<size_t>(pair.site)].out;
    act_kernels_.expand({
        .t = sums.of(pair),
        .t_pitch = sums.pitch,
        .b = b_of(pair, panel),
        .rank = pair.patch->rank,
        .rows = pair.rows,
        .cols = static_cast<int32_t>(std::min<int64_t>(kPanel, out - panel * kPanel)),
        .y = y.row<float>(first - t.chunk.begin),
        .y_pitch = y.pitch,
        .next = false,
    });
  });
}

CpuOps::PairSums CpuOps::shrink_all(Tensor x, const AdaptedLinear& l) {
  if (lora_tasks_.empty()) return {};
  const PairSums sums = pair_sums(x, l.sites, l.lora_scratch);
  parallel(static_cast<int64_t>(lora_tasks_.size()), [&](int64_t task, int) {
    const LoraTask& t = lora_tasks_[static_cast<size_t>(task)];
    shrink(t, x, l.sites[static_cast<size_t>(t.site)], sums);
  });
  return sums;
}

void CpuOps::apply(Tensor y, Tensor x, const AdaptedLinear& l) {
  if (!plan_pairs(l)) return Ops::apply(y, x, l);
  const PairSums sums = shrink_all(x, l);
  const LinearRows in = rows_of(x, l.w, l.groups, l.scratch);
  each_chunk_panel(l.w, l.groups, 1, [&](const PanelTask& t) {
    const Tensor to = rows(y, t.chunk.begin, t.chunk.rows);
    apply_panel(in, t, columns(to, t.column, columns_of(t, l.w)), l, sums);
  });
}

// Each thread keeps the best of its panels.
void CpuOps::apply_best(Tensor best, Tensor y, Tensor x, const AdaptedLinear& l) {
  const int64_t n = y.rows();
  auto* const places = best.row<int32_t>(0);
  if (!plan_pairs(l)) {
    Ops::apply(y, x, l);
    return parallel(n, [&](int64_t r, int) {
      places[r] = static_cast<int32_t>(kernels_.arg_max(y.row<const float>(r), y.cols()));
    });
  }
  const PairSums sums = shrink_all(x, l);
  const LinearRows in = rows_of(x, l.w, l.groups, l.scratch);
  constexpr int64_t kLine = 64 / sizeof(RowTop);  // threads do not share one
  const int64_t pitch = round_up(n, kLine);
  tops_.assign(static_cast<size_t>(pool_.size() * pitch),
               {-std::numeric_limits<float>::infinity(), -1});
  each_chunk_panel(l.w, l.groups, 1, [&](const PanelTask& t) {
    const Tensor own = columns(rows(y, t.chunk.begin, t.chunk.rows), t.column, columns_of(t, l.w));
    apply_panel(in, t, own, l, sums);
    kernels_.tops({.y = own.row<const float>(0),
                   .y_pitch = own.pitch,
                   .rows = t.chunk.rows,
                   .cols = static_cast<int32_t>(own.cols()),
                   .column = static_cast<int32_t>(t.column),
                   .tops = tops_.data() + t.thread * pitch + t.chunk.begin});
  });
  for (int64_t r = 0; r < n; ++r) {
    RowTop first = tops_[static_cast<size_t>(r)];
    for (int64_t thread = 1; thread < pool_.size(); ++thread) {
      const RowTop& other = tops_[static_cast<size_t>(thread * pitch + r)];
      const bool wins = other.top > first.top || (other.top == first.top && other.at < first.at);
      if (wins) first = other;
    }
    places[r] = first.at;
  }
}

void CpuOps::apply_glu(Tensor y, Tensor both, Tensor x, const AdaptedLinear& l,
                       Activation activation) {
  if (!plan_pairs(l)) return Ops::apply_glu(y, both, x, l, activation);
  const PairSums sums = shrink_all(x, l);
  const LinearRows in = rows_of(x, l.w, l.groups, l.scratch);
  const int64_t panel_bytes = l.w.group_bytes / (l.w.out / kPanel);
  each_chunk_panel(l.w, l.groups, 2, [&](const PanelTask& t) {
    alignas(64) std::array<float, size_t{kMostRows} * 2 * kPanel> memory;
    const Tensor tile = view(memory.data(), Dtype::f32, {t.chunk.rows, 2 * kPanel});
    const std::byte* up = t.panel + panel_bytes;
    apply_panel(in, {t.chunk, t.column, t.panel, up, t.thread}, columns(tile, 0, kPanel), l, sums);
    apply_panel(in, {t.chunk, t.column + kPanel, up, t.next, t.thread},
                columns(tile, kPanel, kPanel), l, sums);
    const int64_t first = t.column / 2;
    for (int64_t r = 0; r < t.chunk.rows; ++r) {
      act_kernels_.glu(y.data + ((t.chunk.begin + r) * y.pitch + first) * element(),
                       tile.row<const float>(r), std::min<int64_t>(kPanel, y.cols() - first),
                       static_cast<int>(activation));
    }
  });
}

}  // namespace lorry::cpu
