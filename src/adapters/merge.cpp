#include "adapters/merge.h"

#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/float16.h"

namespace lorry {

namespace {

using Strategy = MergeSpec::Strategy;

float widened(float x) { return x; }
float widened(f16 x) { return to_float(x); }
float widened(bf16 x) { return to_float(x); }

template <class T>
void copy_piece(const LoraPiece& p, const Tensor& source, float* out) {
  const T* from = reinterpret_cast<const T*>(source.data) + p.offset;
  for (int64_t r = 0; r < p.rows; ++r) {
    for (int64_t c = 0; c < p.cols; ++c) {
      *out++ = widened(from[r * p.row_stride + c * p.col_stride]);
    }
  }
}

void read_piece(const LoraPiece& p, const Tensor& source, Matrix& into) {
  into.rows = p.rows;
  into.cols = p.cols;
  into.values.resize(static_cast<size_t>(p.rows * p.cols));
  float* out = into.values.data();
  switch (source.dtype) {
    case Dtype::f32:
      return copy_piece<float>(p, source, out);
    case Dtype::f16:
      return copy_piece<f16>(p, source, out);
    default:
      return copy_piece<bf16>(p, source, out);
  }
}

// One stream of random numbers for each matrix of each adapter.
uint64_t stream_of(uint64_t seed, size_t adapter, int32_t site, bool is_b) {
  const uint64_t key = splitmix64(seed, adapter);
  return splitmix64(key, static_cast<uint64_t>(site) * 2 + (is_b ? 1 : 0));
}

size_t bytes_of(const TensorInfo& t) { return static_cast<size_t>(t.end - t.begin); }

}  // namespace

MergedTensors::MergedTensors(std::string label, std::vector<MergeSource> sources,
                             const MergeSpec& spec, MergePlan plan)
    : label_(std::move(label)), sources_(std::move(sources)), spec_(spec), plan_(std::move(plan)) {
  if (sources_.size() == 1) spec_.strategy = Strategy::linear;
}

Tensor MergedTensors::tensor(const TensorInfo& info) const {
  return view(memory_.data() + info.begin, *info.dtype, info.shape);
}

void MergedTensors::load() {
  LORRY_CHECK(!sources_.empty(), "{} is loaded already", label_);
  for (MergeSource& s : sources_) s.tensors->load();
  memory_ = Buffer(static_cast<size_t>(plan_.tensors.back().end));
  const size_t n = plan_.recipes.size();
  for (size_t i = 0; i < n; ++i) compute(plan_.recipes[i], tensor(plan_.tensors[i]));
  for (size_t i = 0; i < plan_.copies.size(); ++i) copy_base(i, tensor(plan_.tensors[n + i]));
  sources_.clear();
  check_values();
}

void MergedTensors::compute(const MergePlan::Recipe& recipe, Tensor out) const {
  const ReadTerm read = [&](size_t i, Matrix& into) { read_term(recipe, i, into); };
  if (spec_.strategy == Strategy::ties || spec_.strategy == Strategy::dare_ties) {
    elected_mean(recipe.terms, read, spec_.majority_sign, out);
  } else {
    weighted_sum(recipe.terms, read, out);
  }
}

void MergedTensors::read_term(const MergePlan::Recipe& recipe, size_t i, Matrix& into) const {
  const auto [number, piece] = recipe.pieces[i];
  const MergeSource& s = sources_[static_cast<size_t>(number)];
  const LoraPiece& p = s.map.pieces[static_cast<size_t>(piece)];
  read_piece(p, s.tensors->tensor(s.tensors->tensors()[static_cast<size_t>(p.tensor)]), into);
  switch (spec_.strategy) {
    case Strategy::linear:
    case Strategy::cat:
      return;
    case Strategy::ties:
    case Strategy::magnitude_prune:
      return keep_largest(into.values, spec_.density);
    case Strategy::dare_linear:
    case Strategy::dare_ties:
      return keep_random(
          into.values, spec_.density,
          stream_of(spec_.seed, static_cast<size_t>(number), recipe.site, recipe.is_b));
  }
}

// Keeps one of the copies that the adapters carry of a base weight.
void MergedTensors::copy_base(size_t i, Tensor out) const {
  const TensorInfo& merged = plan_.tensors[plan_.recipes.size() + i];
  const size_t bytes = bytes_of(merged);
  bool first = true;
  for (const auto& [number, tensor] : plan_.copies[i]) {
    const MergeSource& s = sources_[static_cast<size_t>(number)];
    const TensorInfo& info = s.tensors->tensors()[static_cast<size_t>(tensor)];
    const Tensor own = s.tensors->tensor(info);
    if (first) {
      std::memcpy(out.data, own.data, bytes);
      first = false;
    } else if (own.dtype != out.dtype || own.shape != out.shape ||
               std::memcmp(own.data, out.data, bytes) != 0) {
      const MergeSource& kept = sources_[static_cast<size_t>(plan_.copies[i].front().first)];
      fail(Code::unsupported,
           "{} and {} cannot be merged: they carry different base weights (tensor {} of {})",
           kept.label, s.label, info.name, s.tensors->path());
    }
  }
}

}  // namespace lorry
