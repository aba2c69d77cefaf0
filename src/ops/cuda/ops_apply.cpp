// apply, apply_best, apply_glu: what follows a linear is done by its own kernel where it has one
// for that. What adapters do beside their pairs goes through linear, adapt and glu, one after the
// other.
#include "ops/cuda/backend.h"

namespace lorry::cuda {

// What adapters do to the results of a linear.
CudaOps::Extra CudaOps::extra_of(const Tensor& x, const AdaptedLinear& l) {
  if (l.segments.empty() || l.plan.adapters.empty()) return Extra::none;
  want_patches(l.sites, l.segments, l.plan);
  bool pairs = false;
  for (const SitePatch& p : wanted_) {
    if (p.change != nullptr) return Extra::changes;
    pairs = pairs || p.rank > 0;
  }
  if (!pairs) return Extra::none;
  // The kernels want t and panels aligned, and have so much room.
  const auto aligned = [](const LoraSite& s) {
    return s.column % kPanel == 0 && s.panel_stride % kPanel == 0;
  };
  const bool fits = std::all_of(l.sites.begin(), l.sites.end(), aligned) &&
                    x.rows() * static_cast<int64_t>(l.sites.size()) <= kMostRowPairs &&
                    reinterpret_cast<uintptr_t>(l.lora_scratch.data) % 16 == 0;
  return fits ? Extra::pairs : Extra::changes;
}

// Of the patches that extra_of wanted.
AdaptArgs CudaOps::pairs_of(Call& call, const LinearArgs& linear, const AdaptedLinear& l) {
  AdaptArgs a{};
  a.rows = linear.rows;
  fill_tables(a, call, l.sites, l.segments);
  a.x = linear.x;
  a.x_pitch = linear.x_pitch;
  fill_sums(a, call, l.lora_scratch);
  a.pairs = reinterpret_cast<RowPair*>(row_pairs_.data());
  a.ready = reinterpret_cast<uint32_t*>(ready_.data());
  a.turn = ++turn_;
  return a;
}

void CudaOps::apply(Tensor y, Tensor x, const AdaptedLinear& l) {
  if (x.rows() == 0) return;
  const LinearArgs shape = linear_shape(x, l.w);
  const bool few = has_16_bits() && has_few_rows(shape) && !is_wide(shape, l.scratch);
  if (!few || extra_of(x, l) != Extra::pairs) return Ops::apply(y, x, l);
  Call call(memory_, staging_);
  AdaptedLinearArgs a{};
  a.linear = linear_args(call, x, l.w, l.groups, l.scratch);
  a.linear.y = call.out<float>(y);
  a.linear.y_pitch = y.pitch;
  a.adapt = pairs_of(call, a.linear, l);
  linear_adapted(call.stream(), a);
}

void CudaOps::apply_best(Tensor best, Tensor y, Tensor x, const AdaptedLinear& l) {
  apply(y, x, l);
  Call call(memory_, staging_);
  find_best(call.stream(),
            {call.out<int32_t>(best), call.in<float>(y), y.pitch, y.rows(), y.cols()});
}

void CudaOps::apply_glu(Tensor y, Tensor both, Tensor x, const AdaptedLinear& l,
                        Activation activation) {
  if (x.rows() == 0) return;
  const LinearArgs shape = linear_shape(x, l.w);
  const bool wide = is_wide(shape, l.scratch);
  const bool quantised = is_quant_decode(shape);
  const bool fits = has_16_bits() && !is_thin(shape) && (has_few_rows(shape) || wide || quantised);
  Extra extra = fits ? extra_of(x, l) : Extra::changes;
  if ((wide || quantised) && extra == Extra::pairs) extra = Extra::changes;
  if (extra == Extra::changes) return Ops::apply_glu(y, both, x, l, activation);
  Call call(memory_, staging_);
  AdaptedLinearArgs a{};
  a.linear = linear_args(call, x, l.w, l.groups, l.scratch);
  a.linear.glu = {call.out(y), y.pitch, y.cols(), static_cast<int>(activation)};
  if (wide) return linear_wide(call.stream(), a.linear);
  if (quantised) return linear_quant(call.stream(), quant_args(call, a.linear, l.scratch));
  if (extra == Extra::none) return linear_mma(call.stream(), a.linear);
  a.adapt = pairs_of(call, a.linear, l);
  linear_adapted(call.stream(), a);
}

}  // namespace lorry::cuda
