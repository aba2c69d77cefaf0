// rope, kv_write, and both at once.
#include "ops/cuda/backend.h"

namespace lorry::cuda {

namespace {

RopeArgs rope_args(Call& call, float* x, const Tensor& shape, const Tensor& cos,
                   const Tensor& sin) {
  return {x,         shape.pitch,  call.in<float>(cos), call.in<float>(sin), cos.pitch,
          sin.pitch, shape.rows(), shape.cols(),        cos.cols()};
}

KvWriteArgs write_args(Call& call, const KvLayer& kv, const Tensor& slots, int64_t rows,
                       const AttentionSpec& spec) {
  KvWriteArgs a{};
  a.k = call.out<unsigned char>(kv.k);
  a.v = call.out<unsigned char>(kv.v);
  a.block_bytes = kv.k.cols() * size_of(kv.k.dtype);
  a.slots = call.in<int32_t>(slots);
  a.rows = static_cast<int32_t>(rows);
  a.kv_heads = spec.kv_heads;
  a.head_dim = spec.head_dim;
  return a;
}

}  // namespace

void CudaOps::rope(Tensor x, Tensor cos, Tensor sin) {
  Call call(memory_, staging_);
  cuda::rope(call.stream(), rope_args(call, call.out<float>(x), x, cos, sin));
}

void CudaOps::kv_write(const KvLayer& kv, Tensor k, Tensor v, Tensor slots,
                       const AttentionSpec& spec) {
  Call call(memory_, staging_);
  KvWriteArgs a = write_args(call, kv, slots, k.rows(), spec);
  a.k_rows = call.in<float>(k);
  a.v_rows = call.in<float>(v);
  a.k_pitch = k.pitch;
  a.v_pitch = v.pitch;
  cuda::kv_write(call.stream(), a, kv_type(spec));
}

void CudaOps::rope_write(const KvLayer& kv, Tensor qkv, float limit, Tensor cos, Tensor sin,
                         Tensor slots, const AttentionSpec& spec) {
  Call call(memory_, staging_);
  RopeWriteArgs a{};
  a.rope = rope_args(call, call.out<float>(qkv), qkv, cos, sin);
  a.write = write_args(call, kv, slots, qkv.rows(), spec);
  a.heads = spec.heads;
  a.limit = limit;
  cuda::rope_write(call.stream(), a, kv_type(spec));
}

}  // namespace lorry::cuda
