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
      if (patch.change != nullptr) plan_change(patch, static_cast<int32_t>(s), segment);
    }
    for (int32_t r = segment.begin; r < segment.end; r += kTaskRows) {
      const int32_t rows = std::min(kTaskRows, segment.end - r);
      for (size_t s = 0; s < sites.size(); ++s) {
        const SitePatch& patch = plan.patch(segment, sites[s].index(segment.group));
        for (int32_t p = 0; 16 * p < patch.rank; ++p) {
          lora_tasks_.push_back({&patch, static_cast<int32_t>(s), r, rows, p, 1});
        }
      }
    }
  }
}

// What the planned pairs take of scratch.
CpuOps::PairSums CpuOps::pair_sums(Tensor x, std::span<const LoraSite> sites,
                                   Tensor scratch) const {
  int32_t rank = 0;
  for (const LoraTask& t : lora_tasks_) rank = std::max(rank, t.patch->rank);
  const PairSums sums{scratch.row<float>(0), x.rows(), round_up(rank, 16)};
  LORRY_CHECK(scratch.shape.size() >= sums.rows * static_cast<int64_t>(sites.size()) * sums.pitch,
              "scratch of {} for {} rows, {} sites, rank {}", scratch.shape.size(), sums.rows,
              sites.size(), rank);
  return sums;
}

// Ranks 16 t.panel ... of t's rows.
void CpuOps::shrink(const LoraTask& t, Tensor x, const LoraSite& site, const PairSums& sums) const {
  act_kernels_.shrink({
      .x = x.data + t.row * x.pitch * element(),
      .x_pitch = x.pitch,
      .a = t.patch->a + 16 * t.panel * padded(site.in) * element(),
      .in = site.in,
      .width = std::min(16, t.patch->rank - 16 * t.panel),
      .rows = t.rows,
      .scale = t.patch->scale,
      .t = sums.of(t) + 16 * t.panel,
      .t_pitch = sums.pitch,
  });
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
  int64_t pairs = 0;
  for (const LoraTask& t : lora_tasks_) pairs += t.panel == 0 ? 1 : 0;
  const PairSums sums = pair_sums(x, sites, scratch);
  const auto site_of = [&](const LoraTask& t) { return sites[static_cast<size_t>(t.site)]; };
  const auto expand = [&](const LoraTask& t) {
    const LoraSite site = site_of(t);
    for (int32_t p = t.panel; p < t.panel + t.panels; ++p) {
      act_kernels_.expand({
          .t = sums.of(t),
          .t_pitch = sums.pitch,
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
      LoraTask part = t;
      for (part.panel = 0; 16 * part.panel < t.patch->rank; ++part.panel) {
        shrink(part, x, site_of(t), sums);
      }
      expand(t);
    });
    return;
  }
  parallel(static_cast<int64_t>(lora_tasks_.size()), [&](int64_t task, int) {
    const LoraTask& t = lora_tasks_[static_cast<size_t>(task)];
    shrink(t, x, site_of(t), sums);
  });
  plan_expand(sites, false);
  parallel(static_cast<int64_t>(panel_tasks_.size()),
           [&](int64_t task, int) { expand(panel_tasks_[static_cast<size_t>(task)]); });
}

}  // namespace lorry::cpu
