#include "ops/cuda/pack_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "base/float16.h"
#include "base/float8.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/fit.h"
#include "ops/cpu/flush_denormals.h"
#include "ops/cpu/isa.h"

namespace lorry::cuda {

namespace {

bool is_plain(const WeightPlan& plan) {
  return is_16_bits(plan.values) || plan.values == Values::f32;
}
// Requires: is_plain.
Dtype dtype_of(const WeightPlan& plan) {
  return plan.values == Values::bf16  ? Dtype::bf16
         : plan.values == Values::f16 ? Dtype::f16
                                      : Dtype::f32;
}

int zero_point(const WeightPlan& plan) { return plan.values == Values::s8 ? 128 : 8; }

// q as linear's values: int8 0 ... 255, int4 0 ... 15, fp8 the byte.
void store_q(const WeightPlan& plan, std::byte* block, int row, int32_t k, uint8_t q) {
  std::byte* chunk = block + k / kChunk * chunk_bytes(plan.values);
  const int within = k % kChunk;
  if (plan.values == Values::fp8) {
    chunk[place_of_fp8(row, within)] = std::byte{q};
  } else if (plan.values == Values::s8) {
    chunk[place_of_s8(row, within)] = static_cast<std::byte>(q ^ 0x80U);  // less 128
  } else {
    std::byte& both = chunk[byte_of_s4(row, within)];
    const unsigned shift = row < 8 ? 0 : 4;
    const auto kept = std::to_integer<unsigned>(both) & (0xf0U >> shift);
    both = static_cast<std::byte>(kept | static_cast<unsigned>(q & 15U) << shift);
  }
}

uint8_t stored_q(const WeightPlan& plan, const std::byte* block, int row, int32_t k) {
  const std::byte* chunk = block + k / kChunk * chunk_bytes(plan.values);
  const int within = k % kChunk;
  if (plan.values == Values::fp8) return std::to_integer<uint8_t>(chunk[place_of_fp8(row, within)]);
  if (plan.values == Values::s8) {
    return static_cast<uint8_t>(std::to_integer<unsigned>(chunk[place_of_s8(row, within)]) ^ 0x80U);
  }
  const auto both = std::to_integer<unsigned>(chunk[byte_of_s4(row, within)]);
  return static_cast<uint8_t>(row < 8 ? both & 15U : both >> 4);
}

// Of scale s of row r: at s * 16 + r.
float stored_scale(const WeightPlan& plan, const std::byte* block, int64_t at) {
  return plan.half ? to_float(reinterpret_cast<const f16*>(block + plan.scales_offset())[at])
                   : reinterpret_cast<const float*>(block + plan.scales_offset())[at];
}
int stored_zero(const WeightPlan& plan, const std::byte* block, int64_t at) {
  return plan.zeros ? std::to_integer<int>(block[plan.zeros_offset() + at]) : zero_point(plan);
}

void store_scale(const WeightPlan& plan, std::byte* block, int row, int32_t s, float scale) {
  const int64_t at = int64_t{s} * kRowBlock + row;
  if (plan.half) {
    reinterpret_cast<f16*>(block + plan.scales_offset())[at] = to_f16(scale);
  } else {
    reinterpret_cast<float*>(block + plan.scales_offset())[at] = scale;
  }
}

// Inputs from `first` on, to the end of the last chunk, are 0 bytes (whatever that means in int8
// and int4: x is 0 there).
void clear_inputs(const WeightPlan& plan, std::byte* block, int row, int32_t first) {
  const uint8_t zero = plan.values == Values::s8 ? 128 : 0;
  for (int32_t k = first; k < plan.chunks() * kChunk; ++k) {
    if (is_plain(plan)) {
      store(block, dtype_of(plan), int64_t{k / kChunk} * kChunkValues + place_of(row, k % kChunk),
            0);
    } else {
      store_q(plan, block, row, k, zero);
    }
  }
}

cpu::QuantLayout fit_layout(const WeightPlan& plan) {
  const cpu::QuantKind kind = plan.values == Values::s8   ? cpu::QuantKind::int8
                              : plan.values == Values::s4 ? cpu::QuantKind::int4
                                                          : cpu::QuantKind::fp8;
  return {kind, plan.half, plan.zeros, plan.in, std::min(plan.group, plan.in)};
}

}  // namespace

void read_row(std::vector<float>& values, const Tensor& src, int64_t r,
              std::span<const int32_t> order) {
  const auto at = [&](int64_t k) {
    return src.dtype == Dtype::f32    ? src.row<const float>(r)[k]
           : src.dtype == Dtype::bf16 ? to_float(src.row<const bf16>(r)[k])
                                      : to_float(src.row<const f16>(r)[k]);
  };
  LORRY_CHECK(src.dtype == Dtype::f32 || src.dtype == Dtype::bf16 || src.dtype == Dtype::f16,
              "cannot pack from {}", to_string(src.dtype));
  for (int64_t i = 0; i < src.cols(); ++i) {
    values[static_cast<size_t>(i)] = at(order.empty() ? i : order[static_cast<size_t>(i)]);
  }
}

void store(std::byte* to, Dtype dtype, int64_t at, float value) {
  if (dtype == Dtype::bf16) {
    reinterpret_cast<bf16*>(to)[at] = to_bf16(value);
  } else if (dtype == Dtype::f16) {
    reinterpret_cast<f16*>(to)[at] = to_f16(value);
  } else {
    reinterpret_cast<float*>(to)[at] = value;
  }
}

void put_quantised(const WeightPlan& plan, std::byte* block, int row, const QuantRow& from) {
  clear_inputs(plan, block, row, plan.in);
  for (int32_t k = 0; k < plan.in; ++k) store_q(plan, block, row, k, from.q[k]);
  for (int32_t s = 0; s < plan.scales; ++s) {
    store_scale(plan, block, row, s, from.scale[s]);
    if (!plan.zeros) continue;
    const int zero = from.zero == nullptr ? zero_point(plan) : from.zero[s];
    block[plan.zeros_offset() + int64_t{s} * kRowBlock + row] = static_cast<std::byte>(zero);
  }
}

void take_quantised(const WeightPlan& plan, std::byte* block, int row, const WeightPlan& whole,
                    const std::byte* from, int from_row, int32_t input) {
  std::vector<uint8_t> q(static_cast<size_t>(plan.in));
  for (int32_t k = 0; k < plan.in; ++k) {
    q[static_cast<size_t>(k)] = stored_q(whole, from, from_row, input + k);
  }
  std::vector<float> scale(static_cast<size_t>(plan.scales));
  std::vector<uint8_t> zero(scale.size());
  for (int32_t s = 0; s < plan.scales; ++s) {
    const int64_t at = (int64_t{plan.half ? input / plan.group : 0} + s) * kRowBlock + from_row;
    scale[static_cast<size_t>(s)] = stored_scale(whole, from, at);
    zero[static_cast<size_t>(s)] = static_cast<uint8_t>(stored_zero(whole, from, at));
  }
  put_quantised(plan, block, row, {q.data(), scale.data(), zero.data()});
}

void put_row(const WeightPlan& plan, std::byte* block, int row, const std::vector<float>& values) {
  if (is_plain(plan)) {
    clear_inputs(plan, block, row, plan.in);
    for (int32_t k = 0; k < plan.in; ++k) {
      const int64_t chunk = int64_t{k / kChunk} * kChunkValues;
      store(block, dtype_of(plan), chunk + place_of(row, k % kChunk),
            values[static_cast<size_t>(k)]);
    }
    return;
  }
  const cpu::FlushDenormals flush;
  const cpu::QuantLayout layout = fit_layout(plan);
  const cpu::Kernels& kernels = cpu::kernels_of(best_isa());
  std::vector<uint8_t> q(static_cast<size_t>(plan.in) + 64 * static_cast<size_t>(plan.scales));
  std::vector<float> scale(static_cast<size_t>(plan.scales));
  for (int32_t s = 0; s < plan.scales; ++s) {
    const int64_t first = int64_t{s} * plan.group;
    // What fit() writes behind these values is overwritten by the next ones.
    scale[static_cast<size_t>(s)] =
        cpu::fit(q.data() + first, kernels, layout, values.data() + first,
                 std::min<int64_t>(plan.group, plan.in - first));
  }
  put_quantised(plan, block, row, {q.data(), scale.data(), nullptr});
}

void clear_rows(const WeightPlan& plan, std::byte* block, int first) {
  for (int row = first; row < kRowBlock; ++row) {
    clear_inputs(plan, block, row, 0);
    for (int32_t s = 0; s < plan.scales; ++s) {
      store_scale(plan, block, row, s, 0);
      if (plan.zeros) block[plan.zeros_offset() + int64_t{s} * kRowBlock + row] = std::byte{0};
    }
  }
}

float stored_value(const WeightPlan& plan, const std::byte* block, int row, int32_t k) {
  const int64_t place = int64_t{k / kChunk} * kChunkValues + place_of(row, k % kChunk);
  if (plan.values == Values::f32) return reinterpret_cast<const float*>(block)[place];
  if (plan.values == Values::bf16) return to_float(reinterpret_cast<const bf16*>(block)[place]);
  if (plan.values == Values::f16) return to_float(reinterpret_cast<const f16*>(block)[place]);
  const int64_t at = int64_t{k / plan.group} * kRowBlock + row;
  const float scale = stored_scale(plan, block, at);
  const uint8_t q = stored_q(plan, block, row, k);
  if (plan.values == Values::fp8) return from_e4m3(q) * scale;
  return static_cast<float>(q - stored_zero(plan, block, at)) * scale;
}

}  // namespace lorry::cuda
