#include "adapters/lora_map.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "base/error.h"

namespace lorry {

namespace {

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kBaseLayer = ".base_layer";

// Cuts `suffix` off; false where the text does not end with it.
bool cut(std::string_view& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.remove_suffix(suffix.size());
  return true;
}

class Mapper {
 public:
  Mapper(const PeftConfig& config, const SiteTable& table, std::span<const TensorInfo> tensors,
         const std::string& file)
      : config_(config), table_(table), tensors_(tensors), file_(file) {
    for (const SiteInfo& s : table.sites) sites_.emplace(s.module, &s);
    for (const FusedParameter& f : table.fused) fused_[f.module].push_back(&f);
    for (auto& [module, list] : fused_) {
      std::sort(list.begin(), list.end(),
                [](const auto* x, const auto* y) { return x->order < y->order; });
    }
    taken_.resize(static_cast<size_t>(table.index.size()), -1);
  }

  LoraMap run() {
    for (size_t i = 0; i < tensors_.size(); ++i) classify(static_cast<int32_t>(i));
    for (const auto& [name, group] : groups_) {
      const int32_t present = group.a >= 0 ? group.a : group.b;
      if (group.a < 0 || group.b < 0) {
        bad(present, fmt::format("expected lora_A and lora_B of {}, found only this one", name));
      }
      place(name, group);
    }
    check_complete();
    const SiteIndex& index = table_.index;
    std::sort(map_.pairs.begin(), map_.pairs.end(), [&](const MappedPair& x, const MappedPair& y) {
      return index(x.site) < index(y.site);
    });
    if (map_.pairs.empty()) fail(Code::bad_file, "{}: holds no LoRA tensor", file_);
    return std::move(map_);
  }

 private:
  struct Group {
    int32_t a = -1, b = -1;
  };
  struct Span {  // one piece and its place in the source
    int64_t offset, row_stride, col_stride;
  };

  const TensorInfo& header(int32_t i) const { return tensors_[static_cast<size_t>(i)]; }

  [[noreturn]] void bad(int32_t tensor, const std::string& what, Code code = Code::bad_file) const {
    fail(code, "{}: tensor {}: {}", file_, header(tensor).name, what);
  }

  void classify(int32_t i) {
    std::string_view name = header(i).name;
    if (!name.starts_with(kPrefix)) {
      bad(i, fmt::format("expected a name that starts with \"{}\", as PEFT writes it", kPrefix));
    }
    name.remove_prefix(kPrefix.size());
    const bool a = cut(name, ".lora_A.weight");
    if (a || cut(name, ".lora_B.weight")) {
      Group& g = groups_[std::string(name)];
      (a ? g.a : g.b) = i;
    } else if (cut(name, ".base_layer.weight")) {
      map_.base_copies.push_back({i, std::string(name)});
    } else {
      refuse_other(i, name);
    }
    const std::optional<Dtype> t = header(i).dtype;
    if (t != Dtype::f32 && t != Dtype::f16 && t != Dtype::bf16) {
      bad(i, fmt::format("expected type F32, F16 or BF16, found {}", header(i).dtype_name));
    }
  }

  [[noreturn]] void refuse_other(int32_t i, std::string_view name) const {
    const auto has = [&](std::string_view part) { return name.find(part) != name.npos; };
    const Code no = Code::unsupported;
    if (has(".lora_magnitude_vector")) bad(i, "DoRA is not supported", no);
    if (has(".lora_embedding_")) bad(i, "LoRA of an embedding is not supported", no);
    if (name.ends_with(".bias")) bad(i, "biases in adapters are not supported", no);
    if (!has("lora_") && name.ends_with(".weight")) {
      bad(i, "a whole weight in an adapter (modules_to_save) is not supported", no);
    }
    bad(i, "expected a name that ends in lora_A.weight or lora_B.weight; this one fits nowhere");
  }

  // `name` is a module path, with one ".base_layer" for each wrapper around the wanted one.
  void place(const std::string& name, const Group& group) {
    std::string path = name;
    size_t depth = 0;
    for (size_t at = 0; (at = path.find(kBaseLayer)) != path.npos; ++depth) {
      path.erase(at, kBaseLayer.size());
    }
    const std::vector<const FusedParameter*> targeted = targeted_parameters(path);
    if (!targeted.empty()) {
      // Wrappers nest: the outermost (depth 0) holds the parameter registered last.
      if (depth >= targeted.size()) {
        bad(group.a, fmt::format("target_parameters names {} parameter(s) of {}, expected at most "
                                 "{} base_layer in the name",
                                 targeted.size(), path, targeted.size() - 1));
      }
      found_[path].push_back(group.a);
      place_fused(*targeted[targeted.size() - 1 - depth], group);
      return;
    }
    const auto site = depth == 0 ? sites_.find(path) : sites_.end();
    if (site == sites_.end()) {
      if (fused_.contains(path)) {
        bad(group.a,
            fmt::format("target_parameters of adapter_config.json names no parameter of {}", path));
      }
      bad(group.a, fmt::format("this model has no linear {} that LoRA can adapt", path));
    }
    place_linear(*site->second, group);
  }

  std::vector<const FusedParameter*> targeted_parameters(const std::string& path) const {
    std::vector<const FusedParameter*> list;
    const auto found = fused_.find(path);
    if (found == fused_.end()) return list;
    for (const FusedParameter* f : found->second) {
      if (config_.targets(path, f->parameter)) list.push_back(f);
    }
    return list;
  }

  // A missing wrapper would shift the names of all others.
  void check_complete() const {
    for (const auto& [path, tensors] : found_) {
      const size_t expected = targeted_parameters(path).size();
      if (tensors.size() == expected) continue;
      bad(tensors.front(), fmt::format("target_parameters names {} parameters of {}, found tensors "
                                       "for {}: which is which cannot be told",
                                       expected, path, tensors.size()));
    }
  }

  void expect(int32_t tensor, Shape shape, int32_t rank) const {
    if (header(tensor).shape == shape) return;
    bad(tensor, fmt::format("expected shape {} (rank {} by r and rank_pattern), found {}",
                            to_string(shape), rank, to_string(header(tensor).shape)));
  }

  void place_linear(const SiteInfo& s, const Group& g) {
    const int32_t rank = config_.rank_of(s.module);
    expect(g.a, {rank, s.in}, rank);
    expect(g.b, {s.out, rank}, rank);
    const int32_t a = piece({g.a, false, rank, s.in, 0, s.in, 1});
    const int32_t b = piece({g.b, true, s.out, rank, 0, rank, 1});
    add_pair(s.site, s.module, a, b, rank);
  }

  void place_fused(const FusedParameter& f, const Group& g) {
    using Form = FusedParameter::Form;
    const std::string name = f.module + "." + f.parameter;
    const int32_t rank = config_.rank_of(name);
    const int64_t experts = table_.index.experts;
    switch (f.form) {
      case Form::plain: {
        expect(g.a, {rank, f.in}, rank);
        expect(g.b, {f.out, rank}, rank);
        const int32_t a = piece({g.a, false, rank, f.in, 0, f.in, 1});
        const int32_t b = piece({g.b, true, f.out, rank, 0, rank, 1});
        return add_pair({SiteKind::router, f.layer, -1}, name, a, b, rank);
      }
      case Form::rows_gate:
      case Form::rows_up:
        expect(g.a, {rank, f.in}, rank);
        expect(g.b, {experts * f.out, rank}, rank);
        for (int32_t e = 0; e < table_.index.experts; ++e) {
          const int32_t a = piece({g.a, false, rank, f.in, 0, f.in, 1});
          const int32_t b = piece({g.b, true, f.out, rank, e * f.out * rank, rank, 1});
          const SiteKind kind = f.form == Form::rows_gate ? SiteKind::gate : SiteKind::up;
          add_pair({kind, f.layer, e}, name, a, b, rank);
        }
        return;
      case Form::rows_down_transposed:
        // The stored matrix is W_e [F, H] with y = h W_e, so the delta B_e A of it acts as
        // y = Aᵀ (B_eᵀ h): the roles swap, and the new B is shared by the experts.
        expect(g.a, {rank, f.out}, rank);
        expect(g.b, {experts * f.in, rank}, rank);
        for (int32_t e = 0; e < table_.index.experts; ++e) {
          const int32_t a = piece({g.b, false, rank, f.in, e * f.in * rank, 1, rank});
          const int32_t b = piece({g.a, true, f.out, rank, 0, 1, f.out});
          add_pair({SiteKind::down, f.layer, e}, name, a, b, rank);
        }
        return;
      case Form::stacked_gate_up:
      case Form::stacked_down:
        return place_stacked(f, g, rank);
    }
  }

  // A [E r, in] with row e r + k, B [out, r E] with column k E + e. Before PEFT 0.19 in and out
  // were exchanged and the delta transposed; only the version tells where in == out.
  void place_stacked(const FusedParameter& f, const Group& g, int32_t rank) {
    const int64_t experts = table_.index.experts;
    const Shape& a_shape = header(g.a).shape;
    const bool swapped =
        f.in == f.out ? config_.old_stacking() : a_shape.rank == 2 && a_shape[1] == f.out;
    const int64_t a_cols = swapped ? f.out : f.in;
    expect(g.a, {experts * rank, a_cols}, rank);
    expect(g.b, {swapped ? f.in : f.out, rank * experts}, rank);
    const bool two = f.form == FusedParameter::Form::stacked_gate_up;
    const int64_t half = two ? f.out / 2 : f.out;
    for (int32_t e = 0; e < table_.index.experts; ++e) {
      const Span stacked{e * rank * a_cols, a_cols, 1};  // rows of the stored A
      const Span ranked{e, rank * experts, experts};     // columns of the stored B
      const int32_t a =
          swapped
              ? piece({g.b, false, rank, f.in, ranked.offset, ranked.col_stride, ranked.row_stride})
              : piece({g.a, false, rank, f.in, stacked.offset, stacked.row_stride,
                       stacked.col_stride});
      for (int64_t first = 0; first < f.out; first += half) {
        const int32_t b =
            swapped ? piece({g.a, true, half, rank, stacked.offset + first, 1, a_cols})
                    : piece({g.b, true, half, rank, first * ranked.row_stride + ranked.offset,
                             ranked.row_stride, ranked.col_stride});
        const SiteKind kind = !two ? SiteKind::down : first == 0 ? SiteKind::gate : SiteKind::up;
        add_pair({kind, f.layer, e}, f.module + "." + f.parameter, a, b, rank);
      }
    }
  }

  // The index of a piece; experts that read the same one share it.
  int32_t piece(const LoraPiece& p) {
    std::vector<int32_t>& same = by_tensor_[p.tensor];
    for (const int32_t i : same) {
      if (map_.pieces[static_cast<size_t>(i)] == p) return i;
    }
    map_.pieces.push_back(p);
    same.push_back(static_cast<int32_t>(map_.pieces.size()) - 1);
    return same.back();
  }

  void add_pair(const Site& site, const std::string& module, int32_t a, int32_t b, int32_t rank) {
    int32_t& taken = taken_[static_cast<size_t>(table_.index(site))];
    const int32_t tensor = map_.pieces[static_cast<size_t>(b)].tensor;
    if (taken >= 0) {
      bad(tensor,
          fmt::format("the same weight is already adapted by tensor {}", header(taken).name));
    }
    taken = tensor;
    map_.pairs.push_back({site, module, a, b, rank, config_.scale_of(module, rank)});
  }

  const PeftConfig& config_;
  const SiteTable& table_;
  const std::span<const TensorInfo> tensors_;
  const std::string& file_;
  std::unordered_map<std::string_view, const SiteInfo*> sites_;
  std::unordered_map<std::string, std::vector<const FusedParameter*>> fused_;
  std::map<std::string, Group> groups_;  // ordered: errors and pieces do not depend on the file
  std::map<std::string, std::vector<int32_t>> found_;
  std::unordered_map<int32_t, std::vector<int32_t>> by_tensor_;
  std::vector<int32_t> taken_;  // tensor that a site is adapted by, or -1
  LoraMap map_;
};

}  // namespace

LoraMap map_lora(const PeftConfig& config, const SiteTable& table,
                 std::span<const TensorInfo> tensors, const std::string& file) {
  return Mapper(config, table, tensors, file).run();
}

}  // namespace lorry
