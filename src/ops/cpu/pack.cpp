// Layouts, and packing at load time.
#include <array>
#include <cstring>

#include "base/float16.h"
#include "base/mapping.h"
#include "ops/cpu/backend.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/isa.h"

namespace lorry {

std::unique_ptr<Ops> make_cpu_ops(Dtype act, ThreadPool& pool, Isa isa) {
  LORRY_CHECK(is_act(act), "{}", to_string(act));
  return std::make_unique<cpu::CpuOps>(act, pool, cpu::kernels_of(isa));
}

namespace cpu {
namespace {

float as_float(float x) { return x; }
float as_float(f16 x) { return to_float(x); }
float as_float(bf16 x) { return to_float(x); }

template <class To, class From>
To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (std::is_same_v<To, bf16>) {
    return to_bf16(as_float(x));
  } else if constexpr (std::is_same_v<To, f16>) {
    return to_f16(as_float(x));
  } else {
    return as_float(x);
  }
}

// Calls f with a null pointer of the source's type.
template <class F>
void with_source(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::f32:
      return f(static_cast<const float*>(nullptr));
    case Dtype::f16:
      return f(static_cast<const f16*>(nullptr));
    case Dtype::bf16:
      return f(static_cast<const bf16*>(nullptr));
    default:
      LORRY_CHECK(false, "cannot pack from {}", to_string(dtype));
  }
}
template <class F>
void with_act(Dtype dtype, F&& f) {
  if (dtype == Dtype::bf16) return f(static_cast<bf16*>(nullptr));
  if (dtype == Dtype::f16) return f(static_cast<f16*>(nullptr));
  f(static_cast<float*>(nullptr));
}

// k that lie together in a column of a panel.
template <class T>
constexpr int64_t kStepOf = std::is_same_v<T, bf16> ? 2 : 1;

// k [from, to) of a row of `in` to a column of a panel `width` wide.
template <class To, class From>
void pack_row(To* column, int64_t width, const From* x, int64_t from, int64_t to, int64_t in) {
  constexpr int64_t kStep = kStepOf<To>;
  for (int64_t k = from; k < to; k += kStep) {
    To* at = column + k * width;
    at[0] = convert<To>(x[k]);
    if constexpr (kStep == 2) at[1] = k + 1 < in ? convert<To>(x[k + 1]) : To{0};
  }
}

// Four pairs of bf16 of each of four rows, `row_pitch` apart, to four columns side by side, whose
// next pair is `pitch` further. By single pairs it takes three times as long.
void turn_pairs(bf16* column, int64_t pitch, const bf16* x, int64_t row_pitch) {
  using Pairs = uint32_t __attribute__((vector_size(16)));
  std::array<Pairs, 4> r;
  for (size_t i = 0; i < 4; ++i) {
    std::memcpy(&r[i], x + static_cast<int64_t>(i) * row_pitch, sizeof(Pairs));
  }
  const Pairs low01 = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
  const Pairs low23 = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
  const Pairs high01 = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
  const Pairs high23 = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
  const std::array turned{__builtin_shufflevector(low01, low23, 0, 1, 4, 5),
                          __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
                          __builtin_shufflevector(high01, high23, 0, 1, 4, 5),
                          __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
  for (size_t i = 0; i < 4; ++i) {
    std::memcpy(column + static_cast<int64_t>(i) * pitch, &turned[i], sizeof(Pairs));
  }
}

// Rows [from, to) of src [n, in] to columns column, column + 1 ... of a panel `width` wide:
// [in / 2][width][2] for bf16, [in][width] for f16 and f32.
template <class To, class From>
void pack_columns(To* panel, int64_t width, int64_t column, Tensor src, int64_t from, int64_t to) {
  const int64_t in = src.cols();
  constexpr int64_t kStep = kStepOf<To>;
  constexpr bool kTurned = std::is_same_v<To, bf16> && std::is_same_v<From, bf16>;
  constexpr int64_t kRows = kTurned ? 4 : 1;
  // Parts of a row: what all rows write of one stays in the cache. They are read at as many places,
  // too many for the processor to fetch ahead by itself.
  constexpr int64_t kPart = 256;
  constexpr int64_t kRowsAhead = 4;
  for (int64_t part = 0; part < in; part += kPart) {
    const int64_t end = std::min(in, part + kPart);
    for (int64_t r = from; r < to;) {
      const int64_t n = to - r < kRows ? 1 : kRows;
      for (int64_t i = 0; i < n; ++i) {
        const From* ahead = src.row<const From>(std::min(r + i + kRowsAhead, to - 1)) + part;
        for (int64_t k = 0; k < kPart; k += 64 / int64_t{sizeof(From)}) {
          __builtin_prefetch(ahead + k);
        }
      }
      const From* x = src.row<const From>(r);
      To* y = panel + (column + r - from) * kStep;
      int64_t k = part;
      if constexpr (kTurned) {
        for (; n == kRows && k + 8 <= end; k += 8) {
          turn_pairs(y + k * width, width * kStep, x + k, src.pitch);
        }
      }
      for (int64_t i = 0; i < n; ++i) {
        pack_row(y + i * kStep, width, src.row<const From>(r + i), k, end, in);
      }
      r += n;
    }
  }
}

// Rows [first, first + n) of group data packed so, to y.
template <class From>
void unpack_rows(Tensor y, const std::byte* data, int64_t panel_bytes, int64_t first) {
  constexpr int64_t kStep = kStepOf<From>;
  for (int64_t r = 0; r < y.rows(); ++r) {
    const int64_t row = first + r;
    const auto* panel = reinterpret_cast<const From*>(data + row / kPanel * panel_bytes);
    float* to = y.row<float>(r);
    for (int64_t k = 0; k < y.cols(); ++k) {
      to[k] = as_float(panel[k / kStep * kStep * kPanel + row % kPanel * kStep + k % kStep]);
    }
  }
}

template <class To>
void zero_columns(To* panel, int64_t from, int64_t to, int64_t in) {
  constexpr int64_t kStep = kStepOf<To>;
  const int64_t end = sizeof(To) == 2 ? round_up(in, 2) : in;  // pairs are complete
  for (int64_t k = 0; k < end; k += kStep) {
    for (int64_t i = from * kStep; i < to * kStep; ++i) panel[k * kPanel + i] = To{0};
  }
}

}  // namespace

Tensor loaded_rows(Tensor src, int64_t first, int64_t n) {
  const Tensor part = rows(src, first, n);
  if (n == 0) return part;
  const int64_t values = (n - 1) * part.pitch + part.cols();
  Mapping::fault_in(part.data, static_cast<size_t>(values * size_of(part.dtype)));
  return part;
}

Weight CpuOps::weight_layout(int64_t groups, int64_t out, int64_t in, WeightFormat format) const {
  Weight w;
  w.dtype = act_;
  w.format = format;
  w.groups = groups;
  w.out = out;
  w.in = in;
  w.group_bytes = ceil_div(out, kPanel) * panel_bytes(in);
  if (!format.plain()) {
    const QuantLayout l = layout_of(format, in);
    // Sums of int8 are exact up to here.
    LORRY_CHECK(l.kind == QuantKind::fp8 || std::min(l.group, in) <= 65536, "{} inputs of a scale",
                l.group);
    w.group_bytes = ceil_div(out, kPanel) * quant_panel_bytes(l);
  }
  return w;
}

// Columns column, column + 1 ... of a panel from the rows of src; `last`: nothing follows them.
void CpuOps::pack_panel(std::byte* data, Tensor src, int64_t column, bool last) const {
  with_act(act_, [&](auto* to) {
    using To = std::remove_pointer_t<decltype(to)>;
    with_source(src.dtype, [&](auto* from) {
      using From = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      auto* panel = reinterpret_cast<To*>(data);
      pack_columns<To, From>(panel, kPanel, column, src, 0, src.rows());
      if (std::is_same_v<To, f16> && src.cols() % 2 != 0) {  // the pair's other k
        std::fill_n(panel + src.cols() * kPanel + column, src.rows(), To{});
      }
      if (last) zero_columns(panel, column + src.rows(), kPanel, src.cols());
    });
  });
}

void CpuOps::pack(Weight& w, int64_t group, int64_t first, Tensor src, bool interleaved) {
  LORRY_CHECK(src.cols() == w.in && first >= 0 && first + src.rows() <= w.out && group < w.groups,
              "rows {} + {} of {} by {}", first, src.rows(), w.out, src.cols());
  const RowPlace place{first, src.rows(), interleaved};
  if (!w.format.plain()) return pack_quantised(w, group, place, src);
  std::byte* data = w.data + group * w.group_bytes;
  each_packed_panel(place, w.out, [&](const PanelRows& p) {
    pack_panel(data + p.panel * panel_bytes(w.in), loaded_rows(src, p.row, p.n), p.column, p.last);
  });
}

void CpuOps::pack_matrix(std::byte* dst, Tensor src, WeightFormat format) const {
  for (int64_t row = 0; row < src.rows(); row += kPanel) {
    const int64_t n = std::min<int64_t>(kPanel, src.rows() - row);
    const bool last = row + n == src.rows();
    if (!format.plain()) {
      quantise_panel(dst, layout_of(format, src.cols()), src, {row / kPanel, 0, row, n, last},
                     nullptr);
    } else {
      pack_panel(dst + row / kPanel * panel_bytes(src.cols()), rows(src, row, n), 0, last);
    }
  }
}

void CpuOps::unpack(Tensor y, const Weight& w, int64_t group, int64_t first) const {
  if (!w.format.plain()) return unpack_quantised(y, w, group, first);
  const std::byte* data = w.data + group * w.group_bytes;
  with_act(act_, [&](auto* from) {
    unpack_rows<std::remove_pointer_t<decltype(from)>>(y, data, panel_bytes(w.in), first);
  });
}

size_t CpuOps::lora_a_bytes(int64_t rank, int64_t in) const {
  return static_cast<size_t>(rank * padded(in) * element());
}

size_t CpuOps::lora_b_bytes(int64_t out, int64_t rank) const {
  return static_cast<size_t>(round_up(out, kPanel) * rank * element());
}

// Panels of 16 ranks, the last as wide as it needs.
void CpuOps::pack_lora_a(std::byte* dst, Tensor a) const {
  with_act(act_, [&](auto* to) {
    using To = std::remove_pointer_t<decltype(to)>;
    with_source(a.dtype, [&](auto* from) {
      using From = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      for (int64_t r = 0; r < a.rows(); r += 16) {
        const int64_t end = std::min(a.rows(), r + 16);
        auto* panel = reinterpret_cast<To*>(dst) + r * padded(a.cols());
        pack_columns<To, From>(panel, end - r, 0, a, r, end);
      }
    });
  });
}

void CpuOps::pack_lora_b(std::byte* dst, Tensor b) const {
  const int64_t rank = b.cols();
  std::memset(dst, 0, lora_b_bytes(b.rows(), rank));
  with_act(act_, [&](auto* to) {
    using To = std::remove_pointer_t<decltype(to)>;
    with_source(b.dtype, [&](auto* from) {
      using From = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      for (int64_t o = 0; o < b.rows(); ++o) {
        const From* x = b.row<const From>(o);
        To* y = reinterpret_cast<To*>(dst) + o / kPanel * kPanel * rank + o % kPanel;
        for (int64_t r = 0; r < rank; ++r) y[r * kPanel] = convert<To>(x[r]);
      }
    });
  });
}

// K of a block and head: bf16 [d / 2][16][2], f16, f32 and int8 [d][16]; V: bf16 [8][d][2], f16,
// f32 and int8 [16][d]. Behind those in int8 stand the f32 scales of the 16 tokens.
Tensor CpuOps::kv_layout(int64_t blocks, const AttentionSpec& spec) const {
  if (spec.kv == KvFormat::int8) {
    return view(nullptr, Dtype::i8, {blocks, spec.kv_heads, kBlockTokens * (spec.head_dim + 4)});
  }
  return view(nullptr, act_, {blocks, spec.kv_heads, kBlockTokens * spec.head_dim});
}

}  // namespace cpu
}  // namespace lorry
