#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string_view>

#include "adapters/merge.h"
#include "base/error.h"

namespace lorry {

namespace {

using Strategy = MergeSpec::Strategy;

constexpr int64_t kAlign = 64;

// What is more than pairs. Copies of base weights are no part of the map.
void refuse_unmergeable(const CheckedFolder& folder) {
  if (!folder.config.invocation_tokens().empty()) {
    fail(Code::unsupported,
         "{}: an adapter that starts at its alora_invocation_tokens cannot be merged with others; "
         "use it alone",
         folder.config.path());
  }
  const auto refuse = [&](int32_t tensor, const char* what) {
    fail(Code::unsupported,
         "{}: tensor {}: an adapter with {} cannot be merged with others; use it alone",
         folder.tensors->path(), folder.tensors->tensors()[static_cast<size_t>(tensor)].name, what);
  };
  const auto tensor_of = [&](int32_t piece) {
    return folder.map.pieces[static_cast<size_t>(piece)].tensor;
  };
  for (const MappedPatch& p : folder.map.patches) {
    if (p.magnitude >= 0) refuse(p.magnitude, "DoRA (use_dora)");
    if (p.weight >= 0) refuse(tensor_of(p.weight), "whole weights (modules_to_save)");
    if (p.token_rows >= 0) {
      refuse(tensor_of(p.token_rows), "trained rows of tokens (trainable_token_indices)");
    }
  }
}

// Where a piece's rank runs along its rows. An embedding's A is a table [V, rank].
bool rank_is_rows(const LoraPiece& p) { return p.form == LoraPiece::Form::lora_a; }

class Planner {
 public:
  Planner(std::span<const MergeSource> sources, const MergeSpec& spec, const SiteIndex& index,
          const MergeLimits& limits)
      // As PEFT: one adapter has nothing to be concatenated or elected with.
      : sources_(sources),
        strategy_(sources.size() == 1 ? Strategy::linear : spec.strategy),
        index_(index),
        limits_(limits) {}

  MergePlan run() {
    for (const MergeSource& s : sources_) {
      refuse_unmergeable(s.folder);
      const int32_t r = s.folder.config.largest_rank();
      plan_.rank = strategy_ == Strategy::cat ? plan_.rank + r : std::max(plan_.rank, r);
    }
    plan_.use_rslora = sources_.front().folder.config.use_rslora();
    for (size_t i = 0; i < sources_.size(); ++i) {
      for (const MappedPatch& p : sources_[i].folder.map.patches) {
        by_site_[index_(p.site)].push_back({static_cast<int32_t>(i), &p});
      }
    }
    for (const auto& [site, parts] : by_site_) add_pair(site, parts);
    return std::move(plan_);
  }

 private:
  struct Part {  // what one adapter does at a site
    int32_t source;
    const MappedPatch* pair;
  };

  const MergeSource& source(int32_t i) const { return sources_[static_cast<size_t>(i)]; }
  const LoraPiece& piece(int32_t i, int32_t p) const {
    return source(i).folder.map.pieces[static_cast<size_t>(p)];
  }
  const TensorInfo& header(int32_t i, int32_t tensor) const {
    return source(i).folder.tensors->tensors()[static_cast<size_t>(tensor)];
  }

  void add_pair(int32_t site, const std::vector<Part>& parts) {
    if (strategy_ != Strategy::cat) check_same_form(parts);
    int64_t rank = 0;
    for (const Part& p : parts) {
      rank =
          strategy_ == Strategy::cat ? rank + p.pair->rank : std::max<int64_t>(rank, p.pair->rank);
    }
    MappedPatch merged = *parts.front().pair;
    if (rank > limits_.max_rank) {
      fail(Code::invalid_argument,
           "merging by {} gives {} a rank of {}; at most {} is supported: merge fewer adapters or "
           "use another strategy",
           to_string(strategy_), merged.module, rank, limits_.max_rank);
    }
    merged.rank = static_cast<int32_t>(rank);
    const double r = plan_.rank;
    merged.scale = static_cast<float>(plan_.use_rslora ? std::sqrt(r) : 1.0);
    merged.a = add_matrix(site, parts, false, rank);
    merged.b = add_matrix(site, parts, true, rank);
    plan_.map.patches.push_back(std::move(merged));
  }

  // Adding matrices value by value means something only where they stand for the same thing: an A
  // of one expert is not one of all experts, nor a B of w1 one of gate_up_proj.
  void check_same_form(const std::vector<Part>& parts) const {
    const auto whole = [&](const Part& p, int32_t i) {
      const LoraPiece& x = piece(p.source, i);
      return x.rows * x.cols == header(p.source, x.tensor).shape.size();
    };
    const Part& first = parts.front();
    for (const Part& p : parts) {
      if (whole(p, p.pair->a) == whole(first, first.pair->a) &&
          whole(p, p.pair->b) == whole(first, first.pair->b)) {
        continue;
      }
      fail(Code::unsupported,
           "{} and {} cannot be merged by {}: one adapts {}, the other {}, and matrices of one "
           "expert and of all experts together do not correspond; use cat",
           source(first.source).folder.label, source(p.source).folder.label, to_string(strategy_),
           first.pair->module, p.pair->module);
    }
  }

  // The index of the merged piece, which is also its tensor's. Sites whose pieces are the same
  // (the A that a fused parameter's experts share) share the merged one.
  int32_t add_matrix(int32_t site, const std::vector<Part>& parts, bool is_b, int64_t rank) {
    MergePlan::Recipe recipe;
    recipe.site = site;
    recipe.is_b = is_b;
    for (const Part& p : parts) recipe.pieces.emplace_back(p.source, is_b ? p.pair->b : p.pair->a);
    const auto [known, is_new] =
        by_pieces_.emplace(recipe.pieces, static_cast<int32_t>(plan_.tensors.size()));
    if (!is_new) return known->second;
    const auto [s, first] = recipe.pieces.front();
    LoraPiece merged = piece(s, first);
    const std::string& name = header(s, merged.tensor).name;
    const bool in_rows = rank_is_rows(merged);
    (in_rows ? merged.rows : merged.cols) = rank;
    merged.tensor = add_tensor(name, Dtype::f32, {merged.rows, merged.cols});
    merged.offset = 0;
    merged.row_stride = merged.cols;
    merged.col_stride = 1;
    int64_t at = 0;  // along the rank, for cat
    for (const Part& p : parts) {
      MergeTerm& t = recipe.terms.emplace_back(term(p, is_b));
      (in_rows ? t.row : t.col) = at;
      if (strategy_ == Strategy::cat) at += p.pair->rank;
    }
    plan_.map.pieces.push_back(merged);
    plan_.recipes.push_back(std::move(recipe));
    return merged.tensor;
  }

  MergeTerm term(const Part& p, bool is_b) const {
    const double weight = static_cast<double>(source(p.source).weight);
    const double t = weight * static_cast<double>(p.pair->scale);
    if (!(std::abs(t) <= static_cast<double>(std::numeric_limits<float>::max()))) {
      fail(Code::invalid_argument, "the weight {} of {} times its scale {} at {} is out of range",
           weight, source(p.source).folder.label, p.pair->scale, p.pair->module);
    }
    if (strategy_ == Strategy::cat) return {is_b ? 1.0F : static_cast<float>(t)};
    // The sign goes to one side only: on both it would cancel.
    const double root = std::sqrt(std::abs(t));
    return {static_cast<float>(!is_b && t < 0 ? -root : root)};
  }

  int32_t add_tensor(const std::string& name, Dtype dtype, Shape shape) {
    const int n = used_names_[name]++;
    TensorInfo info;
    info.name = n == 0 ? name : fmt::format("{}#{}", name, n);
    info.dtype = dtype;
    info.dtype_name = to_string(dtype);
    info.shape = shape;
    info.rank = shape.rank;
    info.begin = end_;
    info.end = end_ + shape.size() * size_of(dtype);
    end_ = (info.end + kAlign - 1) / kAlign * kAlign;
    if (info.end > limits_.max_bytes) {
      fail(Code::over_capacity,
           "the merged adapter takes more than the {} bytes that one adapter may take; merge fewer "
           "or smaller ones",
           limits_.max_bytes);
    }
    plan_.tensors.push_back(std::move(info));
    return static_cast<int32_t>(plan_.tensors.size()) - 1;
  }

  const std::span<const MergeSource> sources_;
  const Strategy strategy_;
  const SiteIndex& index_;
  const MergeLimits& limits_;
  std::map<int32_t, std::vector<Part>> by_site_;
  std::map<std::vector<std::pair<int32_t, int32_t>>, int32_t> by_pieces_;
  std::map<std::string, int> used_names_;
  int64_t end_ = 0;
  MergePlan plan_;
};

}  // namespace

void check_merge(size_t n_adapters, std::span<const float> weights, const MergeSpec& spec) {
  const Code bad = Code::invalid_argument;
  if (n_adapters == 0) {
    fail(bad, "at least one adapter ID must be provided when setting `adapters`");
  }
  if (n_adapters != weights.size()) {
    fail(bad, "number of adapter IDs must match number of adapter weights");
  }
  if (n_adapters > kMaxMerged) {
    fail(bad, "at most {} adapters can be merged. Given: {}", kMaxMerged, n_adapters);
  }
  for (const float w : weights) {
    if (!std::isfinite(w)) fail(bad, "adapter weights must be finite numbers. Given: {}", w);
  }
  const bool prunes = spec.strategy != Strategy::linear && spec.strategy != Strategy::cat;
  if (prunes && !(spec.density > 0 && spec.density <= 1)) {
    fail(bad, "`density` must be > 0.0 and <= 1.0 for the merge strategy {}. Given: {}",
         to_string(spec.strategy), spec.density);
  }
}

MergePlan plan_merge(std::span<const MergeSource> sources, const MergeSpec& spec,
                     const SiteIndex& index, const MergeLimits& limits) {
  LORRY_CHECK(!sources.empty() && sources.size() <= kMaxMerged);
  return Planner(sources, spec, index, limits).run();
}

}  // namespace lorry
