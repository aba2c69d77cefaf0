#include "adapters/medusa.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include <boost/json/serialize.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/json.h"
#include "ops/medusa.h"
#include "weights/slice.h"

namespace lorry {

namespace {

constexpr size_t kMaxConfigBytes = size_t{1} << 20;
constexpr int64_t kMaxBlocks = 16;

std::string config_path(const std::string& folder) { return join_path(folder, "config.json"); }

json::value read_config_file(const std::string& path) {
  json::value value = parse_json_file(path, kMaxConfigBytes);
  if (!value.is_object()) fail(Code::bad_file, "{}: expected a JSON object", path);
  return value;
}

// A whole number, written as 2 or 2.0; empty for anything else.
std::optional<int64_t> whole(const json::value& v) {
  if (v.is_int64()) return v.get_int64();
  if (!v.is_double()) return std::nullopt;
  const double x = v.get_double();
  const auto n = static_cast<int64_t>(std::clamp(x, -1e9, 1e9));
  return static_cast<double>(n) == x ? std::optional(n) : std::nullopt;
}

json::value field(const json::object& o, const char* name) {
  const json::value* v = o.if_contains(name);
  return v == nullptr ? json::value() : *v;
}

int32_t number(const std::string& path, const json::object& o, const char* name, int64_t most) {
  const json::value v = field(o, name);
  const std::optional<int64_t> n = whole(v);
  if (!n || *n < 1 || *n > most) {
    fail(Code::bad_file, "{}: {} is {}; expected a number from 1 to {}", path, name,
         json::serialize(v).substr(0, 40), most);
  }
  return static_cast<int32_t>(*n);
}

// medusa_lm_head.safetensors, else the only one that is not LoRA's.
std::string weight_file(const std::string& folder) {
  std::string path = join_path(folder, "medusa_lm_head.safetensors");
  if (file_exists(path)) return path;
  const bool has_lora = file_exists(join_path(folder, "adapter_config.json"));
  std::vector<std::string> names;
  bool pickle = false;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    pickle = pickle || name == "medusa_lm_head.pt";
    if (!name.ends_with(".safetensors")) continue;
    if (!has_lora || name != "adapter_model.safetensors") names.push_back(name);
  }
  if (names.size() == 1) return join_path(folder, names.front());
  if (names.empty() && pickle) {
    fail(Code::unsupported,
         "{}: holds only medusa_lm_head.pt: pickle files are refused; convert to safetensors",
         folder);
  }
  fail(names.empty() ? Code::not_found : Code::bad_file,
       "{}: expected medusa_lm_head.safetensors (config.json names medusa_num_heads), found {} "
       "other safetensors files that could hold the heads",
       folder, names.size());
}

}  // namespace

bool has_medusa(const std::string& folder) {
  const std::string path = config_path(folder);
  if (!file_exists(path)) return false;
  const json::value value = read_config_file(path);
  return !field(value.get_object(), "medusa_num_heads").is_null();
}

MedusaFolder::MedusaFolder(const std::string& folder, const AdapterTarget& target,
                           const AdapterLimits& limits)
    : ops_(target.ops), rank_(target.rank) {
  const SiteInfo* head = target.sites->find({SiteKind::lm_head});
  LORRY_CHECK(head != nullptr, "a model without an output layer");
  shape_.dim = head->in;
  shape_.vocab = head->out;
  for (int r = 0; r < target.ranks; ++r) {
    vocab_.push_back(target.ranks == 1 ? Range{0, head->out} : target.share(head->site, r).out[0]);
  }
  read_config(config_path(folder), limits.max_medusa_heads);
  tensors_ = open_tensors(weight_file(folder), limits.max_bytes);
  shape_.own_output = version_ != 2 && (shape_.blocks > 1 || find(output_of(0)) != nullptr);
  check_tensors();
}

void MedusaFolder::read_config(const std::string& path, int32_t max_heads) {
  const json::value value = read_config_file(path);
  const json::object& o = value.get_object();
  if (max_heads == 0) {
    fail(Code::unsupported,
         "{}: medusa_num_heads: Medusa heads are not enabled; start with --max-medusa-heads N, N "
         "the most heads of an adapter",
         path);
  }
  shape_.heads = number(path, o, "medusa_num_heads", 1 << 10);
  if (shape_.heads > max_heads) {
    fail(Code::unsupported,
         "{}: medusa_num_heads is {}, more than --max-medusa-heads {} admits; start with a larger "
         "value",
         path, shape_.heads, max_heads);
  }
  shape_.blocks = number(path, o, "medusa_num_layers", kMaxBlocks);
  if (const json::value v = field(o, "version"); !v.is_null()) {
    const std::optional<int64_t> n = whole(v);
    if (n != 1 && n != 2) {
      fail(Code::unsupported, "{}: version is {}; expected 1 or 2", path,
           json::serialize(v).substr(0, 40));
    }
    version_ = static_cast<int32_t>(*n);
  }
  if (version_ == 2 && shape_.blocks != 1) {
    fail(Code::unsupported, "{}: medusa_num_layers is {}; heads of version 2 have one", path,
         shape_.blocks);
  }
  if (const json::value v = field(o, "base_model_name_or_path"); v.is_string()) {
    base_model_ = std::string(v.get_string());
  }
}

std::string MedusaFolder::weight_of(int32_t head, int32_t block) const {
  return fmt::format("{}.{}.linear.weight", head, block);
}

std::string MedusaFolder::bias_of(int32_t head, int32_t block) const {
  return fmt::format("{}.{}.linear.bias", head, block);
}

std::string MedusaFolder::output_of(int32_t head) const {
  return fmt::format("{}.{}.weight", head, shape_.blocks);
}

const TensorInfo* MedusaFolder::find(const std::string& name) const {
  for (const TensorInfo& t : tensors_->tensors()) {
    if (t.name == name) return &t;
  }
  return nullptr;
}

void MedusaFolder::expect(const TensorInfo* t, const std::string& name, const Shape& shape) const {
  if (t == nullptr) {
    fail(Code::bad_file,
         "{}: expected a tensor {} {} (config.json: {} heads of {} layers), found "
         "none",
         path(), name, to_string(shape), shape_.heads, shape_.blocks);
  }
  if (t->dtype != Dtype::f32 && t->dtype != Dtype::f16 && t->dtype != Dtype::bf16) {
    fail(Code::bad_file, "{}: tensor {}: expected type F32, F16 or BF16, found {}", path(), name,
         t->dtype_name);
  }
  if (t->rank != shape.rank || !(t->shape == shape)) {
    fail(Code::bad_file, "{}: tensor {}: expected shape {} to fit the model, found {}", path(),
         name, to_string(shape), to_string(t->shape));
  }
}

void MedusaFolder::check_tensors() {
  std::unordered_map<std::string_view, const TensorInfo*> left;
  for (const TensorInfo& t : tensors_->tensors()) left.emplace(t.name, &t);
  const auto want = [&](const std::string& name, const Shape& shape) {
    const auto found = left.find(name);
    expect(found == left.end() ? nullptr : found->second, name, shape);
    left.erase(found);
  };
  for (int32_t i = 0; i < shape_.heads; ++i) {
    for (int32_t j = 0; j < shape_.blocks; ++j) {
      want(weight_of(i, j), {shape_.dim, shape_.dim});
      want(bias_of(i, j), {shape_.dim});
    }
    if (shape_.own_output) want(output_of(i), {shape_.vocab, shape_.dim});
  }
  for (const TensorInfo& t : tensors_->tensors()) {
    if (!left.contains(t.name)) continue;
    fail(Code::bad_file,
         "{}: tensor {} fits nowhere: expected {} heads of {} layers{}, as config.json says",
         path(), t.name, shape_.heads, shape_.blocks,
         shape_.own_output ? " and an output matrix" : " without output matrices");
  }
}

// Output matrices are split by vocabulary, the blocks are on every rank.
MedusaShape MedusaFolder::shape_of(int rank) const {
  MedusaShape s = shape_;
  s.vocab = vocab_[static_cast<size_t>(rank)].count;
  return s;
}

size_t MedusaFolder::packed_bytes(int rank) const {
  return MedusaLayout(*ops_, shape_of(rank)).bytes();
}

MedusaView MedusaFolder::read(std::byte* memory) {
  tensors_->load(ops_->act());
  const MedusaShape own = shape_of(rank_);
  const Range vocab = vocab_[static_cast<size_t>(rank_)];
  const MedusaLayout layout(*ops_, own);
  const auto content = [&](const std::string& name) { return tensors_->tensor(*find(name)); };
  for (int32_t i = 0; i < shape_.heads; ++i) {
    for (int32_t j = 0; j < shape_.blocks; ++j) {
      ops_->pack_matrix(memory + layout.matrix(i, j), content(weight_of(i, j)));
      const Tensor bias = content(bias_of(i, j));
      copy(view(memory + layout.bias(i, j), Dtype::f32, bias.shape), bias);
    }
    if (!shape_.own_output) continue;
    ops_->pack_matrix(memory + layout.output(i),
                      rows(content(output_of(i)), vocab.first, vocab.count));
  }
  return {memory, own};
}

void MedusaFolder::hash(Sha256& hash) const {
  hash.update("medusa");
  for (const int64_t x : {int64_t{shape_.heads}, int64_t{shape_.blocks}, int64_t{shape_.own_output},
                          shape_.dim, shape_.vocab}) {
    hash.update_value(x);
  }
  std::vector<const TensorInfo*> all;
  for (const TensorInfo& t : tensors_->tensors()) all.push_back(&t);
  tensors_->hash(hash, std::move(all));
}

}  // namespace lorry
