// Fills a Kernels table from the templates; included last by each kernels_*.cpp.
#pragma once
#include "ops/cpu/kernels.h"

namespace lorry::cpu {
namespace {

// A: of linears and rows; Kv: of attention.
template <class A, class Kv, void (*Matmul)(const MatmulArgs&)>
constexpr ActKernels act_table() {
  return {.matmul = Matmul,
          .quant_wide = widened_matmul<A, Matmul>,
          .quantise = nullptr,
          .shrink = shrink<A>,
          .expand = expand<A>,
          .attend = attend_kernels<Kv>(),
          .norm = norm<A>,
          .glu = glu<A>,
          .add_silu = add_silu_row<A>,
          .widen = widen_row<A>,
          .narrow = narrow_row<A>,
          .divide = divide_row<A>};
}

// The probes differ: each instruction set has its own fastest multiplication.
struct Probes {
  void (*spin)(int64_t, float*);
  double spin_flops;
  void (*spin_int8)(int64_t, float*);
  double spin_int8_ops;
};

constexpr Kernels table(const Probes& probes, bool wide) {
  ActKernels bf16 = act_table<Bf16, KvBf16, matmul<Bf16>>();
  if (wide) bf16 = act_table<Bf16, KvBf16Wide, matmul_wide<Bf16Wide>>();
  bf16.quantise = quantise_row<Bf16>;
  ActKernels f16 = act_table<F16, KvF16, matmul_wide<F16Wide>>();
  f16.quantise = quantise_row<F16>;
  return {.bf16 = bf16,
          .f16 = f16,
          .f32 = act_table<F32, KvF32, matmul<F32>>(),
          .tile_rows = 6,
          .block_rows = 96,  // of 2048 bf16: 384 KiB
          .quant = quant_matmul,
          .weight_range = weight_range,
          .round_weights = round_weights,
          .rounding_errors = rounding_errors,
          .attend_int8 = attend_kernels<KvInt8>(),
          .quantise_kv = quantise_kv,
          .add = add_row,
          .multiply = multiply_row,
          .clamp = clamp_row,
          .rope = rope_head,
          .scale = scale_row,
          .axpy = axpy_row,
          .softmax = softmax_row,
          .arg_max = arg_max_row,
          .sum_exp = sum_exp_row,
          .tops = tops_of_panel,
          .merge = merge,
          .spin = probes.spin,
          .spin_flops = probes.spin_flops,
          .read = read_memory,
          .spin_int8 = probes.spin_int8,
          .spin_int8_ops = probes.spin_int8_ops};
}

// f32 multiplications and additions in registers.
[[maybe_unused]] void spin_fma(int64_t iterations, float* sink) {
  V16 c[kSpinChains];
  unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { c[i] = zero(); });
  const V16 a = set1(*sink);
  for (int64_t k = 0; k < iterations; ++k) {
    unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { c[i] = fma(a, a, c[i]); });
  }
  V16 sum = zero();
  unroll<kSpinChains>([&](auto i) LORRY_UNROLLED { sum = add(sum, c[i]); });
  *sink = reduce_add(sum);
}
constexpr double kSpinFmaFlops = kSpinChains * 16 * 2;

}  // namespace
}  // namespace lorry::cpu
