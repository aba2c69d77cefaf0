// Layouts, and packing at load time.
#include <cstring>

#include "base/float16.h"
#include "ops/cpu/backend.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/isa.h"

namespace lorry {

std::unique_ptr<Ops> make_cpu_ops(Dtype act, ThreadPool& pool, Isa isa) {
  LORRY_CHECK(act == Dtype::bf16 || act == Dtype::f32, "{}", to_string(act));
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
  dtype == Dtype::bf16 ? f(static_cast<bf16*>(nullptr)) : f(static_cast<float*>(nullptr));
}

// Rows [from, to) of src [n, in] to columns column, column + 1 ... of a panel `width` wide:
// [in / 2][width][2] for bf16, [in][width] for f32.
template <class To, class From>
void pack_columns(To* panel, int64_t width, int64_t column, Tensor src, int64_t from, int64_t to) {
  const int64_t in = src.cols();
  constexpr int64_t kStep = std::is_same_v<To, bf16> ? 2 : 1;
  // Parts of a row that fit a cache line or two, so that each line of the source is read once.
  constexpr int64_t kPart = 64;
  for (int64_t part = 0; part < in; part += kPart) {
    for (int64_t r = from; r < to; ++r) {
      const From* x = src.row<const From>(r);
      To* y = panel + (column + r - from) * kStep;
      for (int64_t k = part; k < std::min(in, part + kPart); k += kStep) {
        To* at = y + k * width;
        at[0] = convert<To>(x[k]);
        if constexpr (kStep == 2) at[1] = k + 1 < in ? convert<To>(x[k + 1]) : To{0};
      }
    }
  }
}

// Rows [first, first + n) of group data packed so, to y.
template <class From>
void unpack_rows(Tensor y, const std::byte* data, int64_t panel_bytes, int64_t first) {
  constexpr int64_t kStep = std::is_same_v<From, bf16> ? 2 : 1;
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
  constexpr int64_t kStep = std::is_same_v<To, bf16> ? 2 : 1;
  for (int64_t k = 0; k < in; k += kStep) {
    for (int64_t i = from * kStep; i < to * kStep; ++i) panel[k * kPanel + i] = To{0};
  }
}

}  // namespace

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

// Panel p of a matrix [out, in] from those of its rows [first, first + src.rows()) that lie in it.
void CpuOps::pack_panel(std::byte* group, int64_t p, Tensor src, int64_t first, int64_t out) const {
  with_act(act_, [&](auto* to) {
    using To = std::remove_pointer_t<decltype(to)>;
    with_source(src.dtype, [&](auto* from) {
      using From = std::remove_const_t<std::remove_pointer_t<decltype(from)>>;
      auto* panel = reinterpret_cast<To*>(group + p * panel_bytes(src.cols()));
      const int64_t begin = std::max(first, p * kPanel);
      const int64_t end = std::min(first + src.rows(), (p + 1) * kPanel);
      pack_columns<To, From>(panel, kPanel, begin - p * kPanel, src, begin - first, end - first);
      if (end == out) zero_columns(panel, end - p * kPanel, kPanel, src.cols());
    });
  });
}

void CpuOps::pack(Weight& w, int64_t group, int64_t first, Tensor src) {
  if (!w.format.plain()) return pack_quantised(w, group, first, src);
  const int64_t n = src.rows();
  LORRY_CHECK(src.cols() == w.in && first >= 0 && first + n <= w.out && group < w.groups,
              "rows {} + {} of {} by {}", first, n, w.out, src.cols());
  if (n == 0) return;
  const int64_t first_panel = first / kPanel;
  const int64_t panels = ceil_div(first + n, kPanel) - first_panel;
  std::byte* data = w.data + group * w.group_bytes;
  pool_.for_each(panels,
                 [&](int64_t task) { pack_panel(data, first_panel + task, src, first, w.out); });
}

void CpuOps::pack_matrix(std::byte* dst, Tensor src) const {
  for (int64_t p = 0; p * kPanel < src.rows(); ++p) pack_panel(dst, p, src, 0, src.rows());
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

// K of a block and head: bf16 [d / 2][16][2], f32 [d][16], int8 [d][16]; V: bf16 [8][d][2], f32
// [16][d], int8 [16][d]. Behind those in int8 stand the f32 scales of the 16 tokens.
Tensor CpuOps::kv_layout(int64_t blocks, const AttentionSpec& spec) const {
  if (spec.kv == KvFormat::int8) {
    return view(nullptr, Dtype::i8, {blocks, spec.kv_heads, kBlockTokens * (spec.head_dim + 4)});
  }
  return view(nullptr, act_, {blocks, spec.kv_heads, kBlockTokens * spec.head_dim});
}

}  // namespace cpu
}  // namespace lorry
