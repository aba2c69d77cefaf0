#include "adapters/lora_map.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "adapters/fused_parameter.h"
#include "adapters/patch_table.h"
#include "adapters/token_rows.h"
#include "base/error.h"

namespace lorry {

namespace {

using Form = LoraPiece::Form;

constexpr std::string_view kPrefix = "base_model.model.";
constexpr std::string_view kBaseLayer = ".base_layer";

// Cuts `suffix` off; false where the text does not end with it.
bool cut(std::string_view& text, std::string_view suffix) {
  if (!text.ends_with(suffix)) return false;
  text.remove_suffix(suffix.size());
  return true;
}

// Takes every `part` out of `path`; returns how many there were. Linear: names have any length.
size_t take_out(std::string& path, std::string_view part) {
  std::string rest;
  size_t n = 0;
  size_t from = 0;
  for (size_t at = 0; (at = path.find(part, from)) != path.npos; from = at + part.size(), ++n) {
    rest.append(path, from, at - from);
  }
  path = rest.append(path, from);
  return n;
}

class Mapper {
 public:
  Mapper(const PeftConfig& config, const SiteTable& table, const TensorList& tensors)
      : config_(config),
        table_(table),
        list_(tensors),
        patches_(list_, table.index),
        rows_(config_, table_, list_, patches_) {
    for (const SiteInfo& s : table.sites) sites_.emplace(s.module, &s);
    for (const FusedParameter& f : table.fused) fused_[f.module].push_back(&f);
    for (auto& [module, list] : fused_) {
      std::sort(list.begin(), list.end(),
                [](const auto* x, const auto* y) { return x->order < y->order; });
    }
  }

  LoraMap run() {
    for (size_t i = 0; i < list_.tensors.size(); ++i) classify(static_cast<int32_t>(i));
    for (const auto& [name, group] : groups_) {
      const int32_t present = std::max({group.a, group.b, group.magnitude});
      if (group.a < 0 || group.b < 0) {
        list_.bad(present,
                  fmt::format("expected lora_A and lora_B of {}, found only this one", name));
      }
      place(name, group);
    }
    check_complete();
    for (const auto& [name, tensor] : whole_) place_whole(name, tensor);
    check_modules_to_save();
    for (const auto& [name, tensor] : tokens_) {
      const auto site = sites_.find(name);
      rows_.place(name, site == sites_.end() ? nullptr : site->second, tensor);
    }
    rows_.check_lists();
    if (table_.tied_head) {
      rows_.tie();
      if (config_.ensure_weight_tying()) check_tied();
    }
    for (const auto& [index, patch] : patches_.patches()) check_together(patch);
    if (patches_.patches().empty()) fail(Code::bad_file, "{}: holds no tensor", list_.file);
    return patches_.take();
  }

 private:
  struct Group {
    int32_t a = -1, b = -1, magnitude = -1;
    bool embedding = false;
  };

  void classify(int32_t i) {
    std::string_view name = list_.header(i).name;
    if (!name.starts_with(kPrefix)) {
      list_.bad(i,
                fmt::format("expected a name that starts with \"{}\", as PEFT writes it", kPrefix));
    }
    name.remove_prefix(kPrefix.size());
    if (name.ends_with(".bias")) {
      list_.bad(i, "biases in adapters are not supported", Code::unsupported);
    }
    if (!classify_pair(i, name)) {
      if (cut(name, ".token_adapter.trainable_tokens_delta")) {
        tokens_.emplace(name, i);
      } else if (name.find("lora_") == name.npos) {
        whole_.emplace(name, i);
      } else {
        list_.bad(i, "expected an ending of PEFT's, as lora_A.weight; this one fits nowhere");
      }
    }
    const std::optional<Dtype> t = list_.header(i).dtype;
    if (t != Dtype::f32 && t != Dtype::f16 && t != Dtype::bf16) {
      list_.bad(
          i, fmt::format("expected type F32, F16 or BF16, found {}", list_.header(i).dtype_name));
    }
  }

  // Whether tensor i belongs to a pair.
  bool classify_pair(int32_t i, std::string_view name) {
    const bool embedding_a = cut(name, ".lora_embedding_A");
    const bool embedding = embedding_a || cut(name, ".lora_embedding_B");
    const bool a = embedding_a || (!embedding && cut(name, ".lora_A.weight"));
    const bool b = (embedding && !a) || (!a && cut(name, ".lora_B.weight"));
    if (!a && !b && !cut(name, ".lora_magnitude_vector")) return false;
    Group& g = groups_[std::string(name)];
    g.embedding = g.embedding || embedding;
    (a ? g.a : b ? g.b : g.magnitude) = i;
    return true;
  }

  // `name` is a module path, with one ".base_layer" for each wrapper around the wanted one.
  void place(const std::string& name, const Group& group) {
    std::string path = name;
    const size_t depth = take_out(path, kBaseLayer);
    const std::vector<const FusedParameter*> targeted = targeted_parameters(path);
    if (!targeted.empty()) {
      // Wrappers nest: the outermost (depth 0) holds the parameter registered last.
      if (depth >= targeted.size()) {
        list_.bad(group.a,
                  fmt::format("target_parameters names {} parameter(s) of {}, expected at most "
                              "{} base_layer in the name",
                              targeted.size(), path, targeted.size() - 1));
      }
      found_[path].push_back(group.a);
      place_fused(*targeted[targeted.size() - 1 - depth], group);
      return;
    }
    const auto site = depth == 0 ? sites_.find(path) : sites_.end();
    if (site == sites_.end() || is_norm(site->second->site.kind)) {
      const char* what = fused_.contains(path)
                             ? "target_parameters of adapter_config.json names no parameter of "
                             : "this model has no linear that LoRA could adapt at ";
      list_.bad(group.a, what + path);
    }
    place_module(*site->second, group);
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
      list_.bad(tensors.front(),
                fmt::format("target_parameters names {} parameters of {}, found tensors "
                            "for {}: which is which cannot be told",
                            expected, path, tensors.size()));
    }
  }

  static std::string by_rank(int32_t rank) {
    return fmt::format(" (rank {} by r and rank_pattern)", rank);
  }

  void place_module(const SiteInfo& s, const Group& g) {
    if (config_.use_dora() && !config_.invocation_tokens().empty()) {
      list_.bad(g.a, "alora_invocation_tokens and use_dora are set, which PEFT does not combine",
                Code::unsupported);
    }
    const bool embedding = s.site.kind == SiteKind::embed;
    if (embedding != g.embedding) {
      list_.bad(g.a, fmt::format("{} is {}; expected its LoRA as {}", s.module,
                                 embedding ? "an embedding" : "a linear",
                                 embedding ? "lora_embedding_A" : "lora_A.weight"));
    }
    const int32_t rank = config_.rank_of(s.module);
    list_.expect(g.a, {rank, s.in}, by_rank(rank));
    list_.expect(g.b, {s.out, rank}, by_rank(rank));
    const LoraPiece a = embedding ? LoraPiece{g.a, Form::table, s.in, rank, 0, 1, s.in}
                                  : LoraPiece{g.a, Form::lora_a, rank, s.in, 0, s.in, 1};
    MappedPatch& patch =
        patches_.add_pair({s.site, a, {g.b, Form::lora_b, s.out, rank, 0, rank, 1}}, s.module, rank,
                          config_.scale_of(s.module, rank));
    if (config_.use_dora() && g.magnitude < 0) {
      list_.bad(g.a,
                fmt::format("use_dora is true; expected {}{}.lora_magnitude_vector, found none",
                            kPrefix, s.module));
    }
    if (g.magnitude < 0) return;
    if (!config_.use_dora()) {
      list_.bad(g.magnitude, "expected use_dora to be true in adapter_config.json, found it unset");
    }
    list_.expect(g.magnitude, {s.out});
    patch.magnitude = g.magnitude;
  }

  void place_fused(const FusedParameter& f, const Group& g) {
    const std::string name = f.module + "." + f.parameter;
    if (config_.use_dora()) {
      list_.bad(g.a, "use_dora is true, which target_parameters cannot have", Code::unsupported);
    }
    if (!config_.invocation_tokens().empty()) {
      list_.bad(g.a, "alora_invocation_tokens is set, which target_parameters cannot have",
                Code::unsupported);
    }
    const int32_t experts = table_.index.experts;
    const Shape& a_shape = list_.header(g.a).shape;
    FusedPair pair{g.a, g.b, config_.rank_of(name), false};
    // Only the version tells where in == out.
    pair.swapped =
        f.in == f.out ? config_.old_stacking() : a_shape.rank == 2 && a_shape[1] == f.out;
    const PairShapes shapes = pair_shapes(f, pair, experts);
    list_.expect(g.a, shapes.a, by_rank(pair.rank));
    list_.expect(g.b, shapes.b, by_rank(pair.rank));
    const float scale = config_.scale_of(name, pair.rank);
    for (const SitePieces& p : pair_pieces(f, pair, experts)) {
      patches_.add_pair(p, name, pair.rank, scale);
    }
  }

  // A whole weight, or the copy of a base weight that PEFT saves beside LoRA: "X.weight",
  // "X.base_layer.weight", or a fused parameter by its name.
  void place_whole(const std::string& name, int32_t tensor) {
    std::string path = name;
    take_out(path, kBaseLayer);
    take_out(path, ".token_adapter");
    const size_t dot = path.rfind('.');
    const std::string module = path.substr(0, dot == path.npos ? 0 : dot);
    const std::string parameter = path.substr(dot == path.npos ? 0 : dot + 1);
    if (const auto site = sites_.find(module); site != sites_.end() && parameter == "weight") {
      const SiteInfo& s = *site->second;
      if (is_norm(s.site.kind)) {
        list_.expect(tensor, {s.out});
        return patches_.add_weight(s.site, {tensor, Form::vector, 1, s.out, 0, s.out, 1}, module);
      }
      const bool embedding = s.site.kind == SiteKind::embed;
      const int64_t n = embedding ? s.in : s.out;
      const int64_t cols = embedding ? s.out : s.in;
      list_.expect(tensor, {n, cols});
      const Form form = embedding ? Form::table : Form::matrix;
      return patches_.add_weight(s.site, {tensor, form, n, cols, 0, cols, 1}, module);
    }
    const auto fused = fused_.find(module);
    if (fused != fused_.end()) {
      for (const FusedParameter* f : fused->second) {
        if (f->parameter != parameter) continue;
        list_.expect(tensor, whole_shape(*f, table_.index.experts));
        for (const SiteMatrix& m : whole_pieces(*f, tensor, table_.index.experts)) {
          patches_.add_weight(m.site, m.weight, path);
        }
        return;
      }
    }
    list_.bad(tensor,
              fmt::format("this model has no weight {} that an adapter could replace; this tensor "
                          "fits nowhere",
                          path));
  }

  // Whether modules_to_save's `entry` names a module around the tensor `name`.
  static bool saves(const std::string& entry, std::string_view name) {
    for (size_t dot = name.rfind('.'); dot != 0 && dot != name.npos;
         dot = name.rfind('.', dot - 1)) {
      if (name.substr(0, dot).ends_with(entry)) return true;
    }
    return false;
  }

  void check_modules_to_save() const {
    for (const std::string& entry : config_.modules_to_save()) {
      if (std::any_of(whole_.begin(), whole_.end(),
                      [&](const auto& w) { return saves(entry, w.first); })) {
        continue;
      }
      fail(Code::bad_file, "{}: modules_to_save names \"{}\", but {} holds no weight of it",
           config_.path(), entry, list_.file);
    }
  }

  // What is tied by config must be in the file for both.
  void check_tied() const {
    const bool embed = patches_.find({SiteKind::embed}) != nullptr;
    const bool head = patches_.find({SiteKind::lm_head}) != nullptr;
    if (embed == head) return;
    fail(Code::unsupported,
         "{}: ensure_weight_tying is true; expected {} to change the embedding and the output "
         "layer, "
         "found only one of them",
         config_.path(), list_.file);
  }

  void check_together(const MappedPatch& p) const {
    if (!p.tokens.empty() && p.rank > 0) {
      list_.bad(patches_.piece_at(p.token_rows).tensor,
                fmt::format("replaced rows and LoRA of {} cannot be applied together", p.module),
                Code::unsupported);
    }
    const bool embedding = p.site.kind == SiteKind::embed;
    const int32_t rows = p.tokens.empty() ? (embedding ? p.a : -1) : p.token_rows;
    if (rows < 0 || config_.invocation_tokens().empty()) return;
    list_.bad(patches_.piece_at(rows).tensor,
              "alora_invocation_tokens is set, which an adapted embedding cannot have",
              Code::unsupported);
  }

  const PeftConfig& config_;
  const SiteTable& table_;
  const TensorList list_;
  std::unordered_map<std::string_view, const SiteInfo*> sites_;
  std::unordered_map<std::string, std::vector<const FusedParameter*>> fused_;
  // Ordered: errors and pieces do not depend on the file.
  std::map<std::string, Group> groups_;
  std::map<std::string, int32_t> whole_, tokens_;
  std::map<std::string, std::vector<int32_t>> found_;
  PatchTable patches_;
  TokenRows rows_;
};

}  // namespace

LoraMap map_lora(const PeftConfig& config, const SiteTable& table,
                 std::span<const TensorInfo> tensors, const std::string& file) {
  return Mapper(config, table, {tensors, file}).run();
}

}  // namespace lorry
