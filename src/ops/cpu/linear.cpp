// linear: tasks of (rows of a group, panel), the groups with most rows first.
#include "ops/cpu/backend.h"

namespace lorry::cpu {

// Many rows pass over the panels in several blocks, so that x stays in L2 while the panels stream
// by. Each block reads the weights again: up to half as many more rows stay together.
void CpuOps::plan_linear(const RowGroups& groups) {
  const int32_t block = kernels_.block_rows;
  chunks_.clear();
  for (size_t g = 0; g + 1 < groups.begin.size(); ++g) {
    const int32_t rows = groups.begin[g + 1] - groups.begin[g];
    const auto blocks = static_cast<int32_t>(rows <= block * 3 / 2 ? 1 : ceil_div(rows, block));
    const auto step = static_cast<int32_t>(round_up(ceil_div(rows, blocks), kernels_.tile_rows));
    for (int32_t r = 0; r < rows; r += step) {
      chunks_.push_back({static_cast<int32_t>(g), groups.begin[g] + r, std::min(step, rows - r)});
    }
  }
  std::sort(chunks_.begin(), chunks_.end(), [](const Chunk& a, const Chunk& b) {
    return a.rows != b.rows ? a.rows > b.rows : a.begin < b.begin;
  });
}

void CpuOps::linear(Tensor y, Tensor x, const Weight& w, const RowGroups& groups, Tensor scratch) {
  if (!w.format.plain()) return linear_quantised(y, x, w, groups, scratch);
  each_chunk_panel(
      w, groups,
      [&](const Chunk& c, int64_t column, const std::byte* panel, const std::byte* next) {
        act_kernels_.matmul({
            .x = x.data + c.begin * x.pitch * element(),
            .x_pitch = x.pitch,
            .panel = panel,
            .next = next,
            .y = y.row<float>(c.begin) + column,
            .y_pitch = y.pitch,
            .in = w.in,
            .rows = c.rows,
            .cols = static_cast<int32_t>(std::min<int64_t>(kPanel, w.out - column)),
        });
      });
}

}  // namespace lorry::cpu
