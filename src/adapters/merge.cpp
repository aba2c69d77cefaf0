#include "adapters/merge.h"

#include <utility>

#include "adapters/packing.h"
#include "base/error.h"
#include "weights/slice.h"

namespace lorry {

namespace {

using Strategy = MergeSpec::Strategy;

void read_piece(const LoraPiece& p, const Tensor& source, Matrix& into) {
  into.rows = p.rows;
  into.cols = p.cols;
  into.values.resize(static_cast<size_t>(p.rows * p.cols));
  std::vector<std::byte> scratch;
  copy(view(into.values.data(), Dtype::f32, {p.rows, p.cols}), dense_piece(p, source, scratch));
}

// One stream of random numbers for each matrix of each adapter.
uint64_t stream_of(uint64_t seed, size_t adapter, int32_t site, bool is_b) {
  const uint64_t key = splitmix64(seed, adapter);
  return splitmix64(key, static_cast<uint64_t>(site) * 2 + (is_b ? 1 : 0));
}

}  // namespace

MergedTensors::MergedTensors(std::string label, std::vector<MergeSource> sources,
                             const MergeSpec& spec, MergePlan plan, AdapterTarget target)
    : label_(std::move(label)),
      sources_(std::move(sources)),
      spec_(spec),
      plan_(std::move(plan)),
      target_(std::move(target)) {
  if (sources_.size() == 1) spec_.strategy = Strategy::linear;
}

Tensor MergedTensors::tensor(const TensorInfo& info) const {
  return view(memory_.data() + info.begin, *info.dtype, info.shape);
}

void MergedTensors::load(Dtype act) {
  LORRY_CHECK(!sources_.empty(), "{} is loaded already", label_);
  for (MergeSource& s : sources_) s.folder.load(target_);
  memory_ = Buffer(static_cast<size_t>(plan_.tensors.back().end));
  const size_t n = plan_.recipes.size();
  for (size_t i = 0; i < n; ++i) compute(plan_.recipes[i], tensor(plan_.tensors[i]));
  sources_.clear();
  check_values(act);
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
  const CheckedFolder& s = sources_[static_cast<size_t>(number)].folder;
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

CheckedFolder merge_folders(std::span<const MergePart> parts, const MergeSpec& spec,
                            const AdapterTarget& target, const AdapterLimits& limits) {
  AdapterRef ref;
  ref.is_merge = true;
  ref.merge = spec;
  std::vector<float> weights;
  for (const MergePart& p : parts) {
    ref.parts.push_back({p.label, AdapterSource::local, "", p.weight});
    weights.push_back(p.weight);
  }
  check_merge(parts.size(), weights, spec);
  std::vector<MergeSource> sources;
  int64_t bytes = 0;
  for (const MergePart& p : parts) {
    sources.push_back({CheckedFolder::open(p.folder, p.label, target, limits), p.weight});
    if (sources.back().folder.medusa) {
      fail(Code::unsupported,
           "{}: config.json: medusa_num_heads: an adapter with Medusa heads cannot be merged with "
           "others; use it alone",
           p.folder);
    }
    bytes += sources.back().folder.tensors->bytes();
    if (bytes > limits.max_bytes) {
      fail(Code::over_capacity, "{}: the files are larger than {} bytes together", ref.label(),
           limits.max_bytes);
    }
  }
  MergePlan plan =
      plan_merge(sources, spec, target.sites->index, {limits.max_bytes, limits.max_rank});
  PeftConfig config = std::move(sources.front().folder.config);
  LoraMap map = std::move(plan.map);
  auto tensors = std::make_unique<MergedTensors>(ref.label(), std::move(sources), spec,
                                                 std::move(plan), target);
  return {ref.label(), std::move(config), std::move(tensors), std::move(map)};
}

}  // namespace lorry
