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

CpuOps::LinearRows CpuOps::rows_of(Tensor x, const Weight& w, const RowGroups& groups,
                                   Tensor scratch) {
  LinearRows in{.w = w, .row_bytes = x.pitch * element()};
  if (w.format.plain()) {
    in.plain.x = x.data;
    in.plain.x_pitch = x.pitch;
    in.plain.in = w.in;
  } else {
    read_quantised(in, x, groups, scratch);
  }
  return in;
}

// y [rows of the task, its columns].
void CpuOps::multiply(const LinearRows& in, const PanelTask& t, Tensor y) const {
  const auto of_task = [&](auto a) {
    a.x = static_cast<const std::byte*>(a.x) + t.chunk.begin * in.row_bytes;
    a.panel = t.panel;
    a.next = t.next;
    a.y = y.row<float>(0);
    a.y_pitch = y.pitch;
    a.rows = t.chunk.rows;
    a.cols = static_cast<int32_t>(y.cols());
    return a;
  };
  if (in.quant_kernel == nullptr) return act_kernels_.matmul(of_task(in.plain));
  QuantArgs a = of_task(in.quant);
  if (a.x_scale != nullptr) {
    a.x_scale += t.chunk.begin;
    a.x_sum += t.chunk.begin * scales_of(a.layout);
  }
  in.quant_kernel(a);
}

void CpuOps::linear(Tensor y, Tensor x, const Weight& w, const RowGroups& groups, Tensor scratch) {
  const LinearRows in = rows_of(x, w, groups, scratch);
  each_chunk_panel(w, groups, 1, [&](const PanelTask& t) {
    const Tensor to = rows(y, t.chunk.begin, t.chunk.rows);
    multiply(in, t, columns(to, t.column, columns_of(t, w)));
  });
}

}  // namespace lorry::cpu
