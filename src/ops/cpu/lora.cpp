// add_lora: first all shrinks, t = scale * A x, then all expands, y += B t. Tasks are
// (segment, site, panel, rows), so that one row with many sites, many adapters with one row each
// and one adapter with many rows all spread over the threads.
#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

constexpr int32_t kTaskRows = 24;

}  // namespace

void CpuOps::plan_shrink(std::span<const LoraSite> sites, std::span<const LoraSegment> segments,
                         const LoraPlan& plan) {
  lora_tasks_.clear();
  for (const LoraSegment& segment : segments) {
    for (size_t s = 0; s < sites.size(); ++s) {
      const int32_t site = sites[s].first + sites[s].group_stride * segment.group;
      const LoraPair& pair =
          plan.adapters[static_cast<size_t>(segment.adapter)].pairs[static_cast<size_t>(site)];
      for (int32_t r = segment.begin; pair.rank > 0 && r < segment.end; r += kTaskRows) {
        const int32_t rows = std::min(kTaskRows, segment.end - r);
        for (int32_t p = 0; 16 * p < pair.rank; ++p) {
          lora_tasks_.push_back({&pair, static_cast<int32_t>(s), r, rows, p, 1});
        }
      }
    }
  }
}

// One task for each of the shrinks' (segment, site, rows) and a range of output panels.
void CpuOps::plan_expand(std::span<const LoraSite> sites) {
  expand_tasks_.clear();
  for (const LoraTask& t : lora_tasks_) {
    if (t.panel != 0) continue;
    const auto total =
        static_cast<int32_t>(ceil_div(sites[static_cast<size_t>(t.site)].out, kPanel));
    // About 32 KiB of B or half a million operations, whichever is less.
    const int32_t step = std::max(1, std::min(256 / t.pair->rank, 4096 / (t.rows * t.pair->rank)));
    for (int32_t p = 0; p < total; p += step) {
      expand_tasks_.push_back({t.pair, t.site, t.row, t.rows, p, std::min(step, total - p)});
    }
  }
}

void CpuOps::add_lora(Tensor y, Tensor x, std::span<const LoraSite> sites,
                      std::span<const LoraSegment> segments, const LoraPlan& plan, Tensor scratch) {
  plan_shrink(sites, segments, plan);
  if (lora_tasks_.empty()) return;
  int32_t rank = 0;
  for (const LoraTask& t : lora_tasks_) rank = std::max(rank, t.pair->rank);
  const int64_t pitch = round_up(rank, 16);
  const int64_t rows = x.rows();
  LORRY_CHECK(scratch.shape.size() >= rows * static_cast<int64_t>(sites.size()) * pitch,
              "scratch of {} for {} rows, {} sites, rank {}", scratch.shape.size(), rows,
              sites.size(), rank);
  const auto sums = [&](const LoraTask& t) {
    return scratch.row<float>(0) + (t.site * rows + t.row) * pitch;
  };
  parallel(static_cast<int64_t>(lora_tasks_.size()), [&](int64_t task, int) {
    const LoraTask& t = lora_tasks_[static_cast<size_t>(task)];
    const int64_t in = sites[static_cast<size_t>(t.site)].in;
    act_kernels_.shrink({
        .x = x.data + t.row * x.pitch * element(),
        .x_pitch = x.pitch,
        .a = t.pair->a + 16 * t.panel * padded(in) * element(),
        .in = in,
        .width = std::min(16, t.pair->rank - 16 * t.panel),
        .rows = t.rows,
        .scale = t.pair->scale,
        .t = sums(t) + 16 * t.panel,
        .t_pitch = pitch,
    });
  });
  plan_expand(sites);
  parallel(static_cast<int64_t>(expand_tasks_.size()), [&](int64_t task, int) {
    const LoraTask& t = expand_tasks_[static_cast<size_t>(task)];
    const LoraSite& site = sites[static_cast<size_t>(t.site)];
    for (int32_t p = t.panel; p < t.panel + t.panels; ++p) {
      act_kernels_.expand({
          .t = sums(t),
          .t_pitch = pitch,
          .b = t.pair->b + p * kPanel * t.pair->rank * element(),
          .rank = t.pair->rank,
          .rows = t.rows,
          .cols = static_cast<int32_t>(std::min<int64_t>(kPanel, site.out - p * kPanel)),
          .y = y.row<float>(t.row) + site.column + p * site.panel_stride,
          .y_pitch = y.pitch,
      });
    }
  });
}

}  // namespace lorry::cpu
