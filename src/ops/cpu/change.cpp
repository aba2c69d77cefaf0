// adapt, what a patch does beside its pair (SiteChange), and the same for the embedding.
#include <array>

#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

constexpr int32_t kChangeRows = 96;  // rows that pass over a panel together

}  // namespace

void CpuOps::plan_change(const SitePatch& patch, int32_t site, const LoraSegment& segment) {
  for (int32_t r = segment.begin; r < segment.end; r += kChangeRows) {
    change_tasks_.push_back({&patch, site, r, std::min(kChangeRows, segment.end - r), 0, 0});
  }
}

// Calls f(task) for each panel of 64 of the `outputs(task)` outputs of the tasks that change
// something, on all threads.
template <class Outputs, class F>
void CpuOps::each_panel(Outputs&& outputs, F&& f) {
  panel_tasks_.clear();
  for (const LoraTask& t : change_tasks_) {
    const int64_t panels = ceil_div(outputs(t), kPanel);
    for (int32_t p = 0; p < panels; ++p) {
      panel_tasks_.push_back({t.patch, t.site, t.row, t.rows, p, 1});
    }
  }
  parallel(static_cast<int64_t>(panel_tasks_.size()),
           [&](int64_t task, int) { f(panel_tasks_[static_cast<size_t>(task)]); });
}

// The rows of a task times panel t.panel of `weight`.
void CpuOps::multiply_panel(const LoraTask& t, Tensor x, const std::byte* weight, Tensor y,
                            int64_t cols) {
  act_kernels_.matmul({
      .x = x.data + t.row * x.pitch * element(),
      .x_pitch = x.pitch,
      .panel = weight + t.panel * panel_bytes(x.cols()),
      .next = nullptr,
      .y = y.row<float>(0),
      .y_pitch = y.pitch,
      .in = x.cols(),
      .rows = t.rows,
      .cols = static_cast<int32_t>(cols),
  });
}

void CpuOps::replace(Tensor y, Tensor x, std::span<const LoraSite> sites) {
  const auto site_of = [&](const LoraTask& t) { return sites[static_cast<size_t>(t.site)]; };
  each_panel(
      [&](const LoraTask& t) {
        return t.patch->change->weight == nullptr ? int64_t{0} : site_of(t).out;
      },
      [&](const LoraTask& t) {
        const LoraSite site = site_of(t);
        const int64_t first = t.panel * int64_t{kPanel};
        const int64_t cols = std::min<int64_t>(kPanel, site.out - first);
        const Tensor to = columns(rows(y, t.row, t.rows), site.column_of(first), cols);
        multiply_panel(t, x, t.patch->change->weight, to, cols);
      });
}

void CpuOps::scale(Tensor y, std::span<const LoraSite> sites) {
  parallel(static_cast<int64_t>(change_tasks_.size()), [&](int64_t task, int) {
    const LoraTask& t = change_tasks_[static_cast<size_t>(task)];
    const LoraSite& site = sites[static_cast<size_t>(t.site)];
    const float* gain = t.patch->change->gain;
    if (gain == nullptr) return;
    for (int64_t r = t.row; r < t.row + t.rows; ++r) {
      for (int64_t o = 0; o < site.out; o += kPanel) {
        kernels_.multiply(y.row<float>(r) + site.column_of(o), gain + o,
                          std::min<int64_t>(kPanel, site.out - o));
      }
    }
  });
}

void CpuOps::replace_outputs(Tensor y, Tensor x, std::span<const LoraSite> sites) {
  each_panel([](const LoraTask& t) { return int64_t{t.patch->change->n_tokens}; },
             [&](const LoraTask& t) {
               const SiteChange& change = *t.patch->change;
               const LoraSite& site = sites[static_cast<size_t>(t.site)];
               const int64_t first = t.panel * int64_t{kPanel};
               const int64_t cols = std::min<int64_t>(kPanel, change.n_tokens - first);
               std::array<float, size_t{kChangeRows} * kPanel> values;
               const Tensor to = view(values.data(), Dtype::f32, {t.rows, kPanel});
               multiply_panel(t, x, change.token_rows, to, cols);
               for (int64_t r = 0; r < t.rows; ++r) {
                 float* out = y.row<float>(t.row + r);
                 for (int64_t j = 0; j < cols; ++j) {
                   out[site.column_of(change.tokens[first + j])] = to.row<float>(r)[j];
                 }
               }
             });
}

void CpuOps::adapt_embedding(Tensor y, Tensor ids, const LoraSite& site,
                             std::span<const LoraSegment> segments, const LoraPlan& plan,
                             Tensor scratch) {
  int32_t rank = 0;
  for (const LoraSegment& s : segments) rank = std::max(rank, plan.patch(s, site.first).rank);
  const int64_t pitch = round_up(rank, 16);
  LORRY_CHECK(scratch.shape.size() >= y.rows() * pitch, "scratch of {} for {} rows, rank {}",
              scratch.shape.size(), y.rows(), rank);
  for (const LoraSegment& s : segments) {
    const SitePatch& patch = plan.patch(s, site.first);
    if (patch.neutral()) continue;
    parallel_rows(s.end - s.begin, (1 + patch.rank) * y.cols(), [&](int64_t i) {
      const int64_t r = s.begin + i;
      const int32_t id = ids.row<const int32_t>(0)[r];
      if (id < 0) return;
      adapt_token(rows(y, r, 1), scratch.row<float>(0) + r * pitch, id, patch);
    });
  }
}

// y [1, D] of token `id`; t: room for round_up(rank, 16).
void CpuOps::adapt_token(Tensor y, float* t, int32_t id, const SitePatch& patch) {
  const int64_t dim = y.cols();
  float* out = y.row<float>(0);
  const SiteChange none;
  const SiteChange& change = patch.change == nullptr ? none : *patch.change;
  const int32_t* end = change.tokens + change.n_tokens;
  const int32_t* found = std::lower_bound(change.tokens, end, id);
  if (found != end && *found == id) {
    const int64_t row = found - change.tokens;
    return act_kernels_.widen(out, change.token_rows + row * dim * element(), dim);
  }
  if (change.weight != nullptr) {
    act_kernels_.widen(out, change.weight + id * dim * element(), dim);
  }
  if (patch.rank > 0) {
    act_kernels_.widen(t, patch.a + int64_t{id} * patch.rank * element(), patch.rank);
    kernels_.scale(t, t, patch.scale, patch.rank);
    for (int64_t o = 0; o < dim; o += kPanel) {
      act_kernels_.expand({
          .t = t,
          .t_pitch = 0,
          .b = patch.b + o * patch.rank * element(),
          .rank = patch.rank,
          .rows = 1,
          .cols = static_cast<int32_t>(std::min<int64_t>(kPanel, dim - o)),
          .y = out + o,
          .y_pitch = y.pitch,
      });
    }
  }
  if (change.gain != nullptr) kernels_.multiply(out, change.gain, dim);
}

}  // namespace lorry::cpu
