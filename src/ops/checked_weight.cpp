#include "ops/checked_weight.h"

#include <algorithm>
#include <vector>

#include "base/error.h"

namespace lorry {

using Kind = WeightFormat::Kind;

void check_matrix(const char* name, const Tensor& t, Dtype dtype, int64_t rows, int64_t cols) {
  LORRY_CHECK(t.dtype == dtype && t.rows() == rows && t.cols() == cols, "{}: {} {}, expected {} {}",
              name, to_string(t.dtype), to_string(t.shape), to_string(dtype),
              to_string(Shape{rows, cols}));
  LORRY_CHECK(t.data != nullptr || rows * cols == 0, "{}: no memory", name);
  LORRY_CHECK(t.pitch >= cols || rows <= 1, "{}: pitch {} of {} columns", name, t.pitch, cols);
}

void check_format(const WeightFormat& f) {
  const bool whole = f.kind == Kind::int8 || f.kind == Kind::int4;
  LORRY_CHECK(f.group >= 0 && f.group % 32 == 0 && (whole || (f.group == 0 && !f.zeros)),
              "format {}, groups of {}, zero points: {}", static_cast<int>(f.kind), f.group,
              f.zeros);
}

void check_weight(const Weight& w) {
  check_format(w.format);
  if (w.order == nullptr) return;
  LORRY_CHECK(w.format.kind == Kind::int8 || w.format.kind == Kind::int4, "format {} with an order",
              static_cast<int>(w.format.kind));
  std::vector<bool> seen;
  for (int64_t g = 0; g < w.groups; ++g) {
    seen.assign(static_cast<size_t>(w.in), false);
    for (int64_t k = 0; k < w.in; ++k) {
      const int32_t i = w.order[g * w.in + k];
      LORRY_CHECK(i >= 0 && i < w.in && !seen[static_cast<size_t>(i)], "order[{}] = {} of {}", k, i,
                  w.in);
      seen[static_cast<size_t>(i)] = true;
    }
  }
}

void check_place(const Weight& w, int64_t group, int64_t first, int64_t n, bool interleaved) {
  const int64_t panels = (n + kPanel - 1) / kPanel;
  const int64_t end = first + (interleaved ? std::max<int64_t>(0, 2 * panels - 1) * kPanel : n);
  LORRY_CHECK(w.data != nullptr && group >= 0 && group < w.groups && first >= 0 && end <= w.out,
              "group {} of {}, rows {} + {} of {}", group, w.groups, first, n, w.out);
  LORRY_CHECK(!interleaved || first == 0 || first == kPanel, "interleaved from row {}", first);
}

void check_rows(const Weight& w, const QuantRows& rows) {
  const int64_t n = rows.q.rows();
  const int64_t scales = w.format.scales(w.in);
  check_matrix("q", rows.q, Dtype::u8, n, w.in);
  check_matrix("scale", rows.scale, Dtype::f32, n, scales);
  LORRY_CHECK(w.format.zeros == (rows.zero.data != nullptr), "zero points: {}", w.format.zeros);
  if (w.format.zeros) check_matrix("zero", rows.zero, Dtype::u8, n, scales);
  for (int64_t r = 0; r < n && w.format.kind == Kind::int4; ++r) {
    const auto* q = rows.q.row<const uint8_t>(r);
    LORRY_CHECK(std::all_of(q, q + w.in, [](uint8_t x) { return x < 16; }), "row {}: above 15", r);
  }
}

void check_rows(const Weight& w, const PackedRows& rows) {
  const Weight& from = rows.from;
  LORRY_CHECK(!w.format.plain() && from.format == w.format && from.data != nullptr, "formats");
  LORRY_CHECK(w.order == nullptr && from.order == nullptr, "inputs in another order");
  LORRY_CHECK(rows.group >= 0 && rows.group < from.groups && rows.first >= 0 && rows.n > 0 &&
                  rows.column_of(rows.first + rows.n - 1) < from.out,
              "group {} of {}, rows {} + {} of {}", rows.group, from.groups, rows.first, rows.n,
              from.out);
  const int64_t unit = std::max(1, w.format.group);
  const int64_t end = rows.input + w.in;
  LORRY_CHECK(rows.input >= 0 && rows.input % unit == 0 && end <= from.in &&
                  (end % unit == 0 || end == from.in),
              "inputs {} + {} of {}", rows.input, w.in, from.in);
}

void check_segments(std::span<const LoraSegment> segments, const LoraPlan& plan, int64_t rows) {
  int32_t end = 0;
  for (const LoraSegment& s : segments) {
    LORRY_CHECK(s.begin >= end && s.end >= s.begin && s.end <= rows, "rows {} ... {} of {}",
                s.begin, s.end, rows);
    LORRY_CHECK(s.adapter >= 0 && static_cast<size_t>(s.adapter) < plan.adapters.size(),
                "adapter {} of {}", s.adapter, plan.adapters.size());
    end = s.end;
  }
}

}  // namespace lorry
