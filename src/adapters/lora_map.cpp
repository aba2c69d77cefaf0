#include "adapters/lora_map.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string_view>
#include <unordered_map>

#include "adapters/fused_parameter.h"
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

// Takes every `part` out of `path`; returns how many there were.
size_t take_out(std::string& path, std::string_view part) {
  size_t n = 0;
  for (size_t at = 0; (at = path.find(part)) != path.npos; ++n) path.erase(at, part.size());
  return n;
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
  }

  LoraMap run() {
    for (size_t i = 0; i < tensors_.size(); ++i) classify(static_cast<int32_t>(i));
    for (const auto& [name, group] : groups_) {
      const int32_t present = std::max({group.a, group.b, group.magnitude});
      if (group.a < 0 || group.b < 0) {
        bad(present, fmt::format("expected lora_A and lora_B of {}, found only this one", name));
      }
      place(name, group);
    }
    check_complete();
    for (const auto& [name, tensor] : whole_) place_whole(name, tensor);
    check_modules_to_save();
    for (const auto& [name, tensor] : tokens_) place_tokens(name, tensor);
    check_token_lists();
    if (table_.tied_head) {
      tie_tokens();
      if (config_.ensure_weight_tying()) check_tied();
    }
    for (auto& [index, patch] : patches_) {
      check_together(patch);
      map_.patches.push_back(std::move(patch));
    }
    if (map_.patches.empty()) fail(Code::bad_file, "{}: holds no tensor", file_);
    return std::move(map_);
  }

 private:
  struct Group {
    int32_t a = -1, b = -1, magnitude = -1;
    bool embedding = false;
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
    if (name.ends_with(".bias")) {
      bad(i, "biases in adapters are not supported", Code::unsupported);
    }
    if (!classify_pair(i, name)) {
      if (cut(name, ".token_adapter.trainable_tokens_delta")) {
        tokens_.emplace(name, i);
      } else if (name.find("lora_") == name.npos) {
        whole_.emplace(name, i);
      } else {
        bad(i,
            "expected a name that ends in lora_A.weight, lora_B.weight, lora_embedding_A, "
            "lora_embedding_B or lora_magnitude_vector; this one fits nowhere");
      }
    }
    const std::optional<Dtype> t = header(i).dtype;
    if (t != Dtype::f32 && t != Dtype::f16 && t != Dtype::bf16) {
      bad(i, fmt::format("expected type F32, F16 or BF16, found {}", header(i).dtype_name));
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
        bad(group.a, fmt::format("target_parameters names {} parameter(s) of {}, expected at most "
                                 "{} base_layer in the name",
                                 targeted.size(), path, targeted.size() - 1));
      }
      found_[path].push_back(group.a);
      place_fused(*targeted[targeted.size() - 1 - depth], group);
      return;
    }
    const auto site = depth == 0 ? sites_.find(path) : sites_.end();
    if (site == sites_.end() || is_norm(site->second->site.kind)) {
      if (fused_.contains(path)) {
        bad(group.a,
            fmt::format("target_parameters of adapter_config.json names no parameter of {}", path));
      }
      bad(group.a, fmt::format("this model has no linear {} that LoRA can adapt", path));
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
      bad(tensors.front(), fmt::format("target_parameters names {} parameters of {}, found tensors "
                                       "for {}: which is which cannot be told",
                                       expected, path, tensors.size()));
    }
  }

  void expect(int32_t tensor, Shape shape, const std::string& why = {}) const {
    if (header(tensor).rank == shape.rank && header(tensor).shape == shape) return;
    bad(tensor, fmt::format("expected shape {}{}, found {}", to_string(shape), why,
                            to_string(header(tensor).shape)));
  }
  static std::string by_rank(int32_t rank) {
    return fmt::format(" (rank {} by r and rank_pattern)", rank);
  }

  void place_module(const SiteInfo& s, const Group& g) {
    if (config_.use_dora() && !config_.invocation_tokens().empty()) {
      bad(g.a, "alora_invocation_tokens and use_dora are set, which PEFT does not combine",
          Code::unsupported);
    }
    const bool embedding = s.site.kind == SiteKind::embed;
    if (embedding != g.embedding) {
      bad(g.a, fmt::format("{} is {}; expected its LoRA as {}", s.module,
                           embedding ? "an embedding" : "a linear",
                           embedding ? "lora_embedding_A" : "lora_A.weight"));
    }
    const int32_t rank = config_.rank_of(s.module);
    expect(g.a, {rank, s.in}, by_rank(rank));
    expect(g.b, {s.out, rank}, by_rank(rank));
    const LoraPiece a = embedding ? LoraPiece{g.a, Form::table, s.in, rank, 0, 1, s.in}
                                  : LoraPiece{g.a, Form::lora_a, rank, s.in, 0, s.in, 1};
    MappedPatch& patch =
        add_pair({s.site, a, {g.b, Form::lora_b, s.out, rank, 0, rank, 1}}, s.module, rank);
    if (config_.use_dora() && g.magnitude < 0) {
      bad(g.a, fmt::format("use_dora is true; expected {}{}.lora_magnitude_vector, found none",
                           kPrefix, s.module));
    }
    if (g.magnitude < 0) return;
    if (!config_.use_dora()) {
      bad(g.magnitude, "expected use_dora to be true in adapter_config.json, found it unset");
    }
    expect(g.magnitude, {s.out});
    patch.magnitude = g.magnitude;
  }

  void place_fused(const FusedParameter& f, const Group& g) {
    const std::string name = f.module + "." + f.parameter;
    if (config_.use_dora()) {
      bad(g.a, "use_dora is true, which target_parameters cannot have", Code::unsupported);
    }
    if (!config_.invocation_tokens().empty()) {
      bad(g.a, "alora_invocation_tokens is set, which target_parameters cannot have",
          Code::unsupported);
    }
    const int32_t experts = table_.index.experts;
    const Shape& a_shape = header(g.a).shape;
    FusedPair pair{g.a, g.b, config_.rank_of(name), false};
    // Only the version tells where in == out.
    pair.swapped =
        f.in == f.out ? config_.old_stacking() : a_shape.rank == 2 && a_shape[1] == f.out;
    const PairShapes shapes = pair_shapes(f, pair, experts);
    expect(g.a, shapes.a, by_rank(pair.rank));
    expect(g.b, shapes.b, by_rank(pair.rank));
    for (const SitePieces& p : pair_pieces(f, pair, experts)) add_pair(p, name, pair.rank);
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
        expect(tensor, {s.out});
        return add_weight(s.site, {tensor, Form::vector, 1, s.out, 0, s.out, 1}, module);
      }
      const bool embedding = s.site.kind == SiteKind::embed;
      const int64_t n = embedding ? s.in : s.out;
      const int64_t cols = embedding ? s.out : s.in;
      expect(tensor, {n, cols});
      const Form form = embedding ? Form::table : Form::matrix;
      return add_weight(s.site, {tensor, form, n, cols, 0, cols, 1}, module);
    }
    const auto fused = fused_.find(module);
    if (fused != fused_.end()) {
      for (const FusedParameter* f : fused->second) {
        if (f->parameter != parameter) continue;
        expect(tensor, whole_shape(*f, table_.index.experts));
        for (const SiteMatrix& m : whole_pieces(*f, tensor, table_.index.experts)) {
          add_weight(m.site, m.weight, path);
        }
        return;
      }
    }
    bad(tensor,
        fmt::format("this model has no weight {} that an adapter could replace; this tensor "
                    "fits nowhere",
                    path));
  }

  // Whether modules_to_save's `entry` names a module around the tensor `name`.
  static bool saves(const std::string& entry, std::string_view name) {
    for (size_t dot = name.rfind('.'); dot != name.npos; dot = name.rfind('.', dot - 1)) {
      if (name.substr(0, dot).ends_with(entry)) return true;
      if (dot == 0) break;
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
           config_.path(), entry, file_);
    }
  }

  const PeftConfig::TokenList* list_of(const std::string& module, SiteKind kind) const {
    for (const PeftConfig::TokenList& list : config_.token_lists()) {
      if (list.module.empty() ? kind == SiteKind::embed : module.ends_with(list.module)) {
        return &list;
      }
    }
    return nullptr;
  }

  void place_tokens(const std::string& module, int32_t tensor) {
    const auto site = sites_.find(module);
    const bool there = site != sites_.end();
    const SiteKind kind = there ? site->second->site.kind : SiteKind::q;
    if (!there || (kind != SiteKind::embed && kind != SiteKind::lm_head)) {
      bad(tensor,
          fmt::format("this model has no embedding {} whose rows could be replaced", module));
    }
    const SiteInfo& s = *site->second;
    const PeftConfig::TokenList* list = list_of(module, kind);
    if (list == nullptr) {
      bad(tensor,
          fmt::format("trainable_token_indices of adapter_config.json names no tokens of {}",
                      module));
    }
    used_lists_.insert(list);
    const bool embedding = kind == SiteKind::embed;
    const int64_t vocab = embedding ? s.in : s.out;
    const auto n = static_cast<int64_t>(list->ids.size());
    for (const int32_t id : list->ids) {
      if (id < vocab) continue;
      fail(Code::bad_file, "{}: trainable_token_indices names token {}; the model has {}",
           config_.path(), id, vocab);
    }
    const int64_t dim = embedding ? s.out : s.in;
    expect(tensor, {n, dim}, fmt::format(" ({} tokens by trainable_token_indices)", n));
    MappedPatch& patch = patch_at(s.site, module);
    patch.tokens = list->ids;
    patch.token_rows = piece({tensor, embedding ? Form::table : Form::matrix, n, dim, 0, dim, 1});
  }

  // With a tied head PEFT may list the same tokens for the output layer and save their rows once.
  void check_token_lists() const {
    const auto& lists = config_.token_lists();
    for (const PeftConfig::TokenList& list : lists) {
      if (used_lists_.contains(&list)) continue;
      const bool follows =
          table_.tied_head && std::any_of(lists.begin(), lists.end(), [&](auto& l) {
            return used_lists_.contains(&l) && l.ids == list.ids;
          });
      if (follows) continue;
      fail(Code::bad_file,
           "{}: trainable_token_indices names {} tokens{}{}, but {} holds no rows for them",
           config_.path(), list.ids.size(), list.module.empty() ? "" : " of ", list.module, file_);
    }
  }

  // Rows of a tied embedding are rows of the output layer too, unless that has its own.
  void tie_tokens() {
    const auto embed = patches_.find(table_.index({SiteKind::embed}));
    if (embed == patches_.end() || embed->second.tokens.empty()) return;
    MappedPatch& head = patch_at({SiteKind::lm_head}, embed->second.module);
    if (!head.tokens.empty()) return;
    LoraPiece rows = map_.pieces[static_cast<size_t>(embed->second.token_rows)];
    rows.form = Form::matrix;
    head.tokens = embed->second.tokens;
    head.token_rows = piece(rows);
  }

  // What is tied by config must be in the file for both.
  void check_tied() const {
    const auto embed = patches_.find(table_.index({SiteKind::embed}));
    const auto head = patches_.find(table_.index({SiteKind::lm_head}));
    if ((embed == patches_.end()) == (head == patches_.end())) return;
    fail(Code::unsupported,
         "{}: ensure_weight_tying is true; expected {} to change the embedding and the output "
         "layer, "
         "found only one of them",
         config_.path(), file_);
  }

  void check_together(const MappedPatch& p) const {
    if (p.tokens.empty() && p.site.kind != SiteKind::embed) return;
    const int32_t rows = p.tokens.empty() ? p.a : p.token_rows;
    if (rows < 0) return;
    const int32_t tensor = map_.pieces[static_cast<size_t>(rows)].tensor;
    if (!p.tokens.empty() && p.rank > 0) {
      bad(tensor, fmt::format("replaced rows and LoRA of {} cannot be applied together", p.module),
          Code::unsupported);
    }
    if (!config_.invocation_tokens().empty()) {
      bad(tensor, "alora_invocation_tokens is set, which an adapted embedding cannot have",
          Code::unsupported);
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

  MappedPatch& patch_at(const Site& site, const std::string& module) {
    const auto [at, added] = patches_.try_emplace(table_.index(site));
    if (added) {
      at->second.site = site;
      at->second.module = module;
    }
    return at->second;
  }

  // Refuses a second tensor that does the same at a site.
  void check_once(int32_t there, int32_t tensor, const char* what) const {
    if (there < 0) return;
    const LoraPiece& first = map_.pieces[static_cast<size_t>(there)];
    bad(tensor,
        fmt::format("the same weight is already {} by tensor {}", what, header(first.tensor).name));
  }

  MappedPatch& add_pair(const SitePieces& p, const std::string& module, int32_t rank) {
    MappedPatch& patch = patch_at(p.site, module);
    check_once(patch.b, p.b.tensor, "adapted");
    const bool embedding = p.site.kind == SiteKind::embed;
    patch.in = embedding ? p.a.rows : p.a.cols;
    patch.out = p.b.rows;
    patch.a = piece(p.a);
    patch.b = piece(p.b);
    patch.rank = rank;
    patch.scale = config_.scale_of(module, rank);
    return patch;
  }

  void add_weight(const Site& site, const LoraPiece& weight, const std::string& module) {
    MappedPatch& patch = patch_at(site, module);
    check_once(patch.weight, weight.tensor, "replaced");
    patch.weight = piece(weight);
  }

  const PeftConfig& config_;
  const SiteTable& table_;
  const std::span<const TensorInfo> tensors_;
  const std::string& file_;
  std::unordered_map<std::string_view, const SiteInfo*> sites_;
  std::unordered_map<std::string, std::vector<const FusedParameter*>> fused_;
  // Ordered: errors and pieces do not depend on the file.
  std::map<std::string, Group> groups_;
  std::map<std::string, int32_t> whole_, tokens_;
  std::map<std::string, std::vector<int32_t>> found_;
  std::map<int32_t, MappedPatch> patches_;  // by site index
  std::set<const PeftConfig::TokenList*> used_lists_;
  std::unordered_map<int32_t, std::vector<int32_t>> by_tensor_;
  LoraMap map_;
};

}  // namespace

LoraMap map_lora(const PeftConfig& config, const SiteTable& table,
                 std::span<const TensorInfo> tensors, const std::string& file) {
  return Mapper(config, table, tensors, file).run();
}

}  // namespace lorry
