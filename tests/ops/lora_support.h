// Adapters of random pairs.
#pragma once
#include "ops/support.h"

namespace lorry::test {

// An adapter with a pair for each rank given; rank 0: none.
struct Adapter {
  std::vector<Matrix> a, b;
  std::vector<Buffer> packed;
  std::vector<SitePatch> patches;
};

struct PairSpec {
  int64_t in, out;
  int32_t rank;
};

inline Adapter make_adapter(const std::vector<PairSpec>& specs, unsigned seed) {
  Adapter adapter;
  for (const PairSpec& s : specs) {
    const int64_t rank = std::max(1, s.rank);
    adapter.a.push_back(random_matrix(Dtype::f32, rank, s.in, ++seed, 0.2));
    adapter.b.push_back(random_matrix(Dtype::bf16, s.out, rank, ++seed, 0.2));
    adapter.patches.push_back(
        {nullptr, nullptr, s.rank, 0.5F + 0.25F * static_cast<float>(s.rank), nullptr});
  }
  return adapter;
}

inline void pack(Adapter& adapter, Ops& ops) {
  adapter.packed.clear();
  for (size_t i = 0; i < adapter.patches.size(); ++i) {
    SitePatch& p = adapter.patches[i];
    if (p.rank == 0) continue;
    Buffer a(ops.lora_a_bytes(p.rank, adapter.a[i]().cols()));
    Buffer b(ops.lora_b_bytes(adapter.b[i]().rows(), p.rank));
    ops.pack_lora_a(a.data(), adapter.a[i]());
    ops.pack_lora_b(b.data(), adapter.b[i]());
    p.a = a.data();
    p.b = b.data();
    adapter.packed.push_back(std::move(a));
    adapter.packed.push_back(std::move(b));
  }
}

}  // namespace lorry::test
