// The variants of the CPU backend: its instruction sets.
#include "ops/checked_ops.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/support.h"

namespace lorry::test {

namespace {

Variant variant_of(Isa isa) {
  return {to_string(isa), portable(isa), isa == Isa::scalar, static_cast<int>(isa)};
}

}  // namespace

std::vector<Variant> variants() {
  std::vector<Variant> all;
  for (const Isa isa : usable_isas()) all.push_back(variant_of(isa));
  return all;
}

Variant best_variant() { return variant_of(best_isa()); }

Variant best_portable_variant() {
  return variant_of(portable(best_isa()) ? best_isa() : Isa::avx512_fma);
}

std::unique_ptr<Ops> checked_ops(Dtype act, ThreadPool& pool, const Variant& v) {
  return make_checked_ops(make_cpu_ops(act, pool, static_cast<Isa>(v.number)));
}

}  // namespace lorry::test
