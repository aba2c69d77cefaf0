// The operations that work row by row.
#include <array>
#include <cstring>

#include "base/float16.h"
#include "ops/cpu/backend.h"

namespace lorry::cpu {

void CpuOps::embed(Tensor y, Tensor table, Tensor ids) {
  const int32_t* id = ids.row<const int32_t>(0);
  parallel_rows(y.rows(), y.cols(), [&](int64_t r) {
    if (id[r] < 0) {
      std::fill_n(y.row<float>(r), y.cols(), 0.0F);
    } else {
      act_kernels_.widen(y.row<float>(r), table.data + id[r] * table.pitch * element(), y.cols());
    }
  });
}

void CpuOps::norm_row(Tensor y, Tensor x, const Norm& n, int64_t r) const {
  act_kernels_.norm({y.data + r * y.pitch * element(), x.row<const float>(r),
                     n.weight.row<const float>(0), x.cols(), n.eps, n.centered});
}

void CpuOps::norm(Tensor y, Tensor x, const Norm& n) {
  parallel_rows(x.rows(), 2 * x.cols(), [&](int64_t r) { norm_row(y, x, n, r); });
}

void CpuOps::clamp(Tensor x, float limit) {
  parallel_rows(x.rows(), x.cols(),
                [&](int64_t r) { kernels_.clamp(x.row<float>(r), limit, x.cols()); });
}

void CpuOps::rope(Tensor x, Tensor cos, Tensor sin) {
  const int64_t half = cos.cols();
  parallel_rows(x.rows(), x.cols(), [&](int64_t r) {
    for (int64_t h = 0; h < x.cols(); h += 2 * half) {
      kernels_.rope(x.row<float>(r) + h, cos.row<const float>(r), sin.row<const float>(r), half);
    }
  });
}

namespace {

// One token of one head, t its place in the block.
void write_token(float* k, float* v, const float* k_row, const float* v_row, int64_t d, int64_t t) {
  for (int64_t i = 0; i < d; ++i) k[i * 16 + t] = k_row[i];
  std::memcpy(v + t * d, v_row, static_cast<size_t>(d) * sizeof(float));
}
void write_token(f16* k, f16* v, const float* k_row, const float* v_row, int64_t d, int64_t t) {
  for (int64_t i = 0; i < d; ++i) k[i * 16 + t] = to_f16(k_row[i]);
  for (int64_t i = 0; i < d; ++i) v[t * d + i] = to_f16(v_row[i]);
}
void write_token(bf16* k, bf16* v, const float* k_row, const float* v_row, int64_t d, int64_t t) {
  for (int64_t i = 0; i < d; ++i) k[i / 2 * 32 + 2 * t + i % 2] = to_bf16(k_row[i]);
  for (int64_t i = 0; i < d; ++i) v[t / 2 * 2 * d + 2 * i + t % 2] = to_bf16(v_row[i]);
}

template <class T>
T* block_as(std::byte* block) {
  return reinterpret_cast<T*>(block);
}

}  // namespace

void CpuOps::kv_write(const KvLayer& kv, Tensor k, Tensor v, Tensor slots,
                      const AttentionSpec& spec) {
  const int32_t* slot = slots.row<const int32_t>(0);
  const int64_t d = spec.head_dim;
  const int64_t block_bytes = kv.k.cols() * size_of(kv.k.dtype);
  const auto quantise = [&](std::byte* block, int64_t first, int64_t pitch, const float* x,
                            int64_t t) {
    kernels_.quantise_kv(block_as<int8_t>(block) + first, pitch,
                         block_as<float>(block + kBlockTokens * d) + t, x, d);
  };
  parallel_rows(k.rows(), 8 * k.cols(), [&](int64_t r) {
    if (slot[r] < 0) return;
    const int64_t t = slot[r] % kBlockTokens;
    for (int64_t h = 0; h < spec.kv_heads; ++h) {
      const int64_t at = (slot[r] / kBlockTokens * int64_t{spec.kv_heads} + h) * block_bytes;
      std::byte* to_k = kv.k.data + at;
      std::byte* to_v = kv.v.data + at;
      const float* k_row = k.row<const float>(r) + h * d;
      const float* v_row = v.row<const float>(r) + h * d;
      if (spec.kv == KvFormat::int8) {
        quantise(to_k, t, kBlockTokens, k_row, t);
        quantise(to_v, t * d, 1, v_row, t);
      } else if (act_ == Dtype::bf16) {
        write_token(block_as<bf16>(to_k), block_as<bf16>(to_v), k_row, v_row, d, t);
      } else if (act_ == Dtype::f16) {
        write_token(block_as<f16>(to_k), block_as<f16>(to_v), k_row, v_row, d, t);
      } else {
        write_token(block_as<float>(to_k), block_as<float>(to_v), k_row, v_row, d, t);
      }
    }
  });
}

void CpuOps::gather(Tensor y, Tensor x, Tensor index) {
  const int32_t* row = index.row<const int32_t>(0);
  const int64_t bytes = y.cols() * size_of(y.dtype);
  parallel_rows(y.rows(), y.cols(), [&](int64_t r) {
    std::memcpy(y.data + r * y.pitch * size_of(y.dtype),
                x.data + row[r] * x.pitch * size_of(x.dtype), static_cast<size_t>(bytes));
  });
}

void CpuOps::glu(Tensor y, Tensor gu, Activation activation) {
  parallel_rows(y.rows(), 4 * y.cols(), [&](int64_t r) {
    act_kernels_.glu(y.data + r * y.pitch * element(), gu.row<const float>(r), y.cols(),
                     static_cast<int>(activation));
  });
}

void CpuOps::combine(Tensor y, Tensor d, const Route& route) {
  const int64_t k = route.slot.cols();
  parallel_rows(y.rows(), k * y.cols(), [&](int64_t r) {
    const int32_t* slot = route.slot.row<const int32_t>(r);
    const float* w = route.weight.row<const float>(r);
    bool first = true;
    for (int64_t j = 0; j < k; ++j) {
      if (slot[j] < 0) continue;
      if (first) {
        kernels_.scale(y.row<float>(r), d.row<const float>(slot[j]), w[j], y.cols());
      } else {
        kernels_.axpy(y.row<float>(r), d.row<const float>(slot[j]), w[j], y.cols());
      }
      first = false;
    }
    if (first) std::fill_n(y.row<float>(r), y.cols(), 0.0F);
  });
}

void CpuOps::add_row(Tensor x, std::span<const Tensor> parts, int64_t r) const {
  float* to = x.row<float>(r);
  if (parts.size() == 1) return kernels_.add(to, parts[0].row<const float>(r), x.cols());
  alignas(64) std::array<float, 1024> sum;
  for (int64_t c = 0; c < x.cols(); c += 1024) {
    const int64_t n = std::min<int64_t>(1024, x.cols() - c);
    std::copy_n(parts[0].row<const float>(r) + c, n, sum.data());
    for (const Tensor& part : parts.subspan(1)) {
      kernels_.add(sum.data(), part.row<const float>(r) + c, n);
    }
    kernels_.add(to + c, sum.data(), n);
  }
}

void CpuOps::add(Tensor x, std::span<const Tensor> parts) {
  parallel_rows(x.rows(), x.cols(), [&](int64_t r) { add_row(x, parts, r); });
}

void CpuOps::add_norm(Tensor y, Tensor x, std::span<const Tensor> parts, const Norm& n) {
  parallel_rows(x.rows(), 3 * x.cols(), [&](int64_t r) {
    add_row(x, parts, r);
    norm_row(y, x, n, r);
  });
}

void CpuOps::add_silu(Tensor y, Tensor x, Tensor v, Tensor bias) {
  parallel_rows(x.rows(), 4 * x.cols(), [&](int64_t r) {
    act_kernels_.add_silu(y.data + r * y.pitch * element(), x.data + r * x.pitch * element(),
                          v.row<const float>(r), bias.row<const float>(0), x.cols());
  });
}

}  // namespace lorry::cpu
