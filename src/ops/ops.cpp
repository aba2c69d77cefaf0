// Operations that are made of others, where a backend does not do them in one pass.
#include "ops/ops.h"

namespace lorry {

void Ops::rope_write(const KvLayer& kv, Tensor qkv, float limit, Tensor cos, Tensor sin,
                     Tensor slots, const AttentionSpec& spec) {
  const int64_t q = int64_t{spec.heads} * spec.head_dim;
  const int64_t k = int64_t{spec.kv_heads} * spec.head_dim;
  clamp(qkv, limit);
  rope(columns(qkv, 0, q + k), cos, sin);
  kv_write(kv, columns(qkv, q, k), columns(qkv, q + k, k), slots, spec);
}

void Ops::dispatch(Route& route, Tensor y, Tensor x, Tensor scores, const Routing& routing,
                   const LoraPlan& plan) {
  this->route(route, scores, routing);
  group(route, plan);
  const int64_t n = route.n_rows();
  gather(rows(y, 0, n), x, view(route.source.data, Dtype::i32, {n}));
}

}  // namespace lorry
