// adapt, the pairs: t = scale * A x, then y += B t. Where there are pairs enough for all threads, a
// task is one of them, for some rows. Where there are few, first all shrinks, then all expands, in
// tasks of (segment, site, panel, rows): so one row with many sites, many adapters with one row
// each and one adapter with many rows all spread over the threads. What patches do beside their
// pairs is in change.cpp.
#include "ops/cpu/backend.h"

namespace lorry::cpu {

namespace {

constexpr int32_t kTaskRows = 24;
constexpr int64_t kPairsPerThread = 4;  // enough to deal them out whole

}  // namespace

void CpuOps::plan_patches(std::span<const LoraSite> sites, std::span<const LoraSegment> segments,
                          const LoraPlan& plan) {
  lora_tasks_.clear();
  change_tasks_.clear();
  for (const LoraSegment& segment : segments) {
    for (size_t s = 0; s < sites.size(); ++s) {
      const SitePatch& patch = plan.patch(segment, sites[s].index(segment.group));
      const auto site = static_cast<int32_t>(s);
      if (patch.change != nullptr) plan_change(patch, site, segment);
      for (int32_t r = segment.begin; patch.rank > 0 && r < segment.end; r += kTaskRows) {
        const int32_t rows = std::min(kTaskRows, segment.end - r);
        for (int32_t p = 0; 16 * p < patch.rank; ++p) {
          lora_tasks_.push_back({&patch, site, r, rows, p, 1});
        }
      }
    }
  }
}

// One task for each of the shrinks' (segment, site, rows) and a range of output panels, or all.
void CpuOps::plan_expand(std::span<const LoraSite> sites, bool whole) {
  panel_tasks_.clear();
  for (const LoraTask& t : lora_tasks_) {
    if (t.panel != 0) continue;
    const auto total =
        static_cast<int32_t>(ceil_div(sites[static_cast<size_t>(t.site)].out, kPanel));
    // About 32 KiB of B or half a million operations, whichever is less.
    const int32_t rank = t.patch->rank;
    const int32_t step = whole ? total : std::max(1, std::min(256 / rank, 4096 / (t.rows * rank)));
    for (int32_t p = 0; p < total; p += step) {
      panel_tasks_.push_back({t.patch, t.site, t.row, t.rows, p, std::min(step, total - p)});
    }
  }
}

void CpuOps::adapt(Tensor y, Tensor x, std::span<const LoraSite> sites,
                   std::span<const LoraSegment> segments, const LoraPlan& plan, Tensor scratch) {
  plan_patches(sites, segments, plan);
  if (!change_tasks_.empty()) replace(y, x, sites);
  if (!lora_tasks_.empty()) add_pairs(y, x, sites, scratch);
  if (!change_tasks_.empty()) {
    scale(y, sites);
    replace_outputs(y, x, sites);
  }
}

void CpuOps::add_pairs(Tensor y, Tensor x, std::span<const LoraSite> sites, Tensor scratch) {
  int32_t rank = 0;
  int64_t pairs = 0;
  for (const LoraTask& t : lora_tasks_) {
    rank = std::max(rank, t.patch->rank);
    pairs += t.panel == 0 ? 1 : 0;
  }
  const int64_t pitch = round_up(rank, 16);
  const int64_t rows = x.rows();
  LORRY_CHECK(scratch.shape.size() >= rows * static_cast<int64_t>(sites.size()) * pitch,
              "scratch of {} for {} rows, {} sites, rank {}", scratch.shape.size(), rows,
              sites.size(), rank);
  const auto sums = [&](const LoraTask& t) {
    return scratch.row<float>(0) + (t.site * rows + t.row) * pitch;
  };
  const auto shrink = [&](const LoraTask& t, int32_t panel) {
    const int64_t in = sites[static_cast<size_t>(t.site)].in;
    act_kernels_.shrink({
        .x = x.data + t.row * x.pitch * element(),
        .x_pitch = x.pitch,
        .a = t.patch->a + 16 * panel * padded(in) * element(),
        .in = in,
        .width = std::min(16, t.patch->rank - 16 * panel),
        .rows = t.rows,
        .scale = t.patch->scale,
        .t = sums(t) + 16 * panel,
        .t_pitch = pitch,
    });
  };
  const auto expand = [&](const LoraTask& t) {
    const LoraSite& site = sites[static_cast<size_t>(t.site)];
    for (int32_t p = t.panel; p < t.panel + t.panels; ++p) {
      act_kernels_.expand({
          .t = sums(t),
          .t_pitch = pitch,
          .b = t.patch->b + p * kPanel * t.patch->rank * element(),
          .rank = t.patch->rank,
          .rows = t.rows,
          .cols = static_cast<int32_t>(std::min<int64_t>(kPanel, site.out - p * kPanel)),
          .y = y.row<float>(t.row) + site.column + p * site.panel_stride,
          .y_pitch = y.pitch,
      });
    }
  };
  if (pairs >= kPairsPerThread * pool_.size()) {
    plan_expand(sites, true);
    parallel(static_cast<int64_t>(panel_tasks_.size()), [&](int64_t task, int) {
      const LoraTask& t = panel_tasks_[static_cast<size_t>(task)];
      for (int32_t p = 0; 16 * p < t.patch->rank; ++p) shrink(t, p);
      expand(t);
    });
    return;
  }
  parallel(static_cast<int64_t>(lora_tasks_.size()), [&](int64_t task, int) {
    const LoraTask& t = lora_tasks_[static_cast<size_t>(task)];
    shrink(t, t.panel);
  });
  plan_expand(sites, false);
  parallel(static_cast<int64_t>(panel_tasks_.size()),
           [&](int64_t task, int) { expand(panel_tasks_[static_cast<size_t>(task)]); });
}

}  // namespace lorry::cpu
