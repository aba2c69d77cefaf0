#include "adapters/checked_folder.h"

#include <algorithm>
#include <utility>

#include "adapters/packing.h"
#include "base/error.h"
#include "base/files.h"

namespace lorry {

namespace {

// The one weight file of the folder. Names what to do where there is another format instead.
std::string weight_file(const std::string& folder) {
  std::string path = join_path(folder, "adapter_model.safetensors");
  if (file_exists(path)) return path;
  if (file_exists(join_path(folder, "adapter_model.bin"))) {
    fail(Code::unsupported,
         "{}: holds only adapter_model.bin: pickle adapters are refused; convert to safetensors",
         folder);
  }
  fail(Code::not_found, "{}: expected adapter_model.safetensors, found none", folder);
}

void check_invocation(const PeftConfig& config, const SiteTable& table) {
  const SiteInfo* head = table.find({SiteKind::lm_head});
  LORRY_CHECK(head != nullptr, "a model without an output layer");
  const int64_t vocab = head->out;
  for (const int32_t id : config.invocation_tokens()) {
    if (id < vocab) continue;
    fail(Code::bad_file,
         "{}: alora_invocation_tokens holds {}; expected token ids of the model, 0 to {}",
         config.path(), id, vocab - 1);
  }
}

bool same_header(const TensorInfo& x, const TensorInfo& y) {
  return x.name == y.name && x.dtype == y.dtype && x.shape == y.shape && x.begin == y.begin;
}

[[noreturn]] void changed(const std::string& path) {
  fail(Code::bad_file, "{}: the file changed while it was loaded; load it again", path);
}

// Whether a whole weight is the base model's once it is rounded to what the backend computes with.
bool is_base(const TensorSet& content, const CheckedFolder::Copy& copy,
             const AdapterTarget& target) {
  constexpr int64_t kRows = 64;
  const LoraPiece& p = copy.piece;
  std::vector<std::byte> scratch;
  const TensorInfo& info = content.tensors()[static_cast<size_t>(p.tensor)];
  const Tensor weight = dense_piece(p, content.tensor(info), scratch);
  const auto elements = static_cast<size_t>(std::min(kRows, p.rows) * p.cols);
  std::vector<float> own(elements), base(elements);
  for (int64_t first = 0; first < p.rows; first += kRows) {
    const Shape shape{std::min(kRows, p.rows - first), p.cols};
    round_piece(view(own.data(), Dtype::f32, shape), rows(weight, first, shape[0]), p.form,
                target.ops->act());
    target.base_rows(view(base.data(), Dtype::f32, shape), copy.site, first);
    if (!std::equal(own.begin(), own.begin() + shape.size(), base.begin())) return false;
  }
  return true;
}

void drop_base_copies(CheckedFolder& f, const AdapterTarget& target, int64_t max_bytes) {
  std::vector<MappedPatch>& patches = f.map.patches;
  const auto whole = [](const MappedPatch& p) { return p.weight >= 0; };
  if (std::none_of(patches.begin(), patches.end(), whole)) return;
  const auto content = open_tensors(f.tensors->path(), max_bytes);
  content->load(target.ops->act());
  if (!std::equal(content->tensors().begin(), content->tensors().end(),
                  f.tensors->tensors().begin(), f.tensors->tensors().end(), same_header)) {
    changed(content->path());
  }
  for (MappedPatch& p : patches) {
    if (!whole(p)) continue;
    const CheckedFolder::Copy copy{f.map.pieces[static_cast<size_t>(p.weight)], p.site};
    if (is_base(*content, copy, target)) {
      f.copies.push_back(copy);
      p.weight = -1;
    } else if (!f.config.invocation_tokens().empty()) {
      fail(Code::unsupported,
           "{}: tensor {}: alora_invocation_tokens is set, and a whole weight cannot be used from "
           "a token on",
           content->path(), content->tensors()[static_cast<size_t>(copy.piece.tensor)].name);
    }
  }
  std::erase_if(patches, [](const MappedPatch& p) {
    return p.rank == 0 && p.weight < 0 && p.tokens.empty();
  });
}

}  // namespace

CheckedFolder CheckedFolder::open(const std::string& folder, const std::string& label,
                                  const AdapterTarget& target, const AdapterLimits& limits) {
  LORRY_CHECK(target.sites != nullptr && target.ops != nullptr);
  if (!is_directory(folder)) fail(Code::not_found, "{}: no such folder", folder);
  const std::string config_path = join_path(folder, "adapter_config.json");
  std::unique_ptr<MedusaFolder> medusa;
  if (has_medusa(folder)) medusa = std::make_unique<MedusaFolder>(folder, target, limits);
  if (!file_exists(config_path)) {
    if (!medusa) fail(Code::not_found, "{}: expected adapter_config.json, found none", folder);
    PeftConfig none = PeftConfig::none(medusa->base_model());
    auto tensors = no_tensors(medusa->path());
    return {label, std::move(none), std::move(tensors), {}, {}, std::move(medusa)};
  }
  PeftConfig config = PeftConfig::read(config_path, limits.max_rank);
  check_invocation(config, *target.sites);
  std::unique_ptr<TensorSet> tensors = open_tensors(weight_file(folder), limits.max_bytes);
  LoraMap map = map_lora(config, *target.sites, tensors->tensors(), tensors->path());
  CheckedFolder result{label, std::move(config), std::move(tensors), std::move(map),
                       {},    std::move(medusa)};
  drop_base_copies(result, target, limits.max_bytes);
  return result;
}

void CheckedFolder::load(const AdapterTarget& target) {
  tensors->load(target.ops->act());
  for (const Copy& copy : copies) {
    if (!is_base(*tensors, copy, target)) changed(tensors->path());
  }
}

}  // namespace lorry
