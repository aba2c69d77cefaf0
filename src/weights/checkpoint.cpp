#include "weights/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/files.h"

namespace lorry {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxIndexBytes = size_t{64} << 20;

// tensor name -> shard file name, from model.safetensors.index.json.
std::map<std::string, std::string> read_weight_map(const std::string& path) {
  const json::value index = parse_json_file(path, kMaxIndexBytes);
  const json::value* map =
      index.is_object() ? index.as_object().if_contains("weight_map") : nullptr;
  if (map == nullptr || !map->is_object() || map->as_object().empty()) {
    fail(Code::bad_file, "{}: expected an object with a \"weight_map\" of tensors", path);
  }
  std::map<std::string, std::string> result;
  for (const auto& [key, value] : map->as_object()) {
    const std::string name(key);
    const std::string shard(value.is_string() ? std::string_view(value.as_string()) : "");
    if (!shard.ends_with(".safetensors") ||
        shard.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos ||
        shard.find("..") != std::string::npos) {
      fail(Code::bad_file,
           "{}: weight_map of tensor {} is {}, expected the name of a .safetensors file in the "
           "same folder",
           path, quote(name), value.is_string() ? quote(shard) : "not a string");
    }
    result.emplace(name, shard);
  }
  return result;
}

// "model-00001-of-00002.safetensors": the name that sharded checkpoints are saved under.
bool is_shard_name(std::string_view name) {
  constexpr std::string_view kPattern = "model-#####-of-#####.safetensors";
  return name.size() == kPattern.size() &&
         std::equal(name.begin(), name.end(), kPattern.begin(),
                    [](char c, char p) { return p == '#' ? c >= '0' && c <= '9' : c == p; });
}

// "F32, F16 or BF16"
std::string names_of(std::initializer_list<Dtype> types) {
  std::string names;
  for (const Dtype* t = types.begin(); t != types.end(); ++t) {
    if (t != types.begin()) names += t + 1 == types.end() ? " or " : ", ";
    names += to_string(*t);
  }
  return names;
}

// The folder holds neither file that we read: say what it does hold.
[[noreturn]] void fail_without_weights(const std::string& folder) {
  std::error_code unreadable;  // then the message below says enough
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, unreadable)) {
    const std::string name = entry.path().filename().string();
    const bool other = name.ends_with(".gguf") || name.ends_with(".bin") || name.ends_with(".pt") ||
                       name.ends_with(".pth");
    // Refuses with the command that converts this format.
    if (other && entry.is_regular_file()) {
      SafetensorsFile::open(join_path(folder, name), Access::mapped);
    }
  }
  fail(Code::not_found,
       "{}: no model.safetensors and no model.safetensors.index.json in this folder", folder);
}

}  // namespace

Checkpoint::Checkpoint(std::string folder, Config config, Digest config_digest)
    : folder_(std::move(folder)), config_(std::move(config)), config_digest_(config_digest) {}

Checkpoint Checkpoint::open(const std::string& folder) {
  if (!is_directory(folder)) {
    // A file in place of the folder: its own error tells more (GGUF, pickle).
    if (file_exists(folder)) SafetensorsFile::open(folder, Access::mapped);
    fail(file_exists(folder) ? Code::invalid_argument : Code::not_found,
         "{}: expected the folder of a model (config.json and safetensors)", folder);
  }
  const std::string config_path = join_path(folder, "config.json");
  const std::string config_text = read_file(config_path);
  Sha256 sha;
  sha.update(config_text);
  Checkpoint checkpoint(folder, Config::parse(config_text, config_path), sha.finish());

  const std::string single = join_path(folder, "model.safetensors");
  const std::string index = join_path(folder, "model.safetensors.index.json");
  if (file_exists(single)) {
    checkpoint.open_single(single);
  } else if (file_exists(index)) {
    checkpoint.open_shards(index);
  } else {
    fail_without_weights(folder);
  }
  return checkpoint;
}

void Checkpoint::open_single(const std::string& path) {
  weights_path_ = path;
  add_file(path);
}

void Checkpoint::open_shards(const std::string& index_path) {
  weights_path_ = index_path;
  const std::map<std::string, std::string> weight_map = read_weight_map(index_path);
  check_no_extra_shard(weight_map);
  std::set<std::string> shards;
  for (const auto& [name, shard] : weight_map) shards.insert(shard);
  for (const std::string& shard : shards) {
    const std::string path = join_path(folder_, shard);
    if (!file_exists(path)) {
      fail(Code::not_found, "{}: this shard, named by {}, is missing", path, index_path);
    }
    add_file(path);
  }
  for (const auto& [name, shard] : weight_map) {
    const auto found = places_.find(name);
    if (found == places_.end() || files_[found->second.file].path() != join_path(folder_, shard)) {
      fail(Code::bad_file, "{}: tensor {} is not in shard {}", index_path, quote(name), shard);
    }
  }
  for (const auto& [name, place] : places_) {
    if (!weight_map.contains(std::string(name))) {
      fail(Code::bad_file, "{}: tensor {} is not in the weight_map of {}",
           files_[place.file].path(), quote(name), index_path);
    }
  }
}

void Checkpoint::check_no_extra_shard(const std::map<std::string, std::string>& weight_map) const {
  std::error_code unreadable;  // a folder that cannot be listed: the shards named are all there is
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, unreadable)) {
    const std::string name = entry.path().filename().string();
    if (!is_shard_name(name)) continue;
    const bool named = std::any_of(weight_map.begin(), weight_map.end(),
                                   [&](const auto& item) { return item.second == name; });
    if (!named) {
      fail(Code::bad_file,
           "{}: this shard is not named by {}: the folder mixes two checkpoints, or its index is "
           "incomplete",
           entry.path().string(), weights_path_);
    }
  }
}

void Checkpoint::add_file(const std::string& path) {
  files_.push_back(SafetensorsFile::open(path, Access::mapped));
  for (const TensorInfo& info : files_.back().tensors()) {
    const auto [at, added] = places_.try_emplace(info.name, Place{files_.size() - 1, &info});
    if (!added) {
      fail(Code::bad_file, "{}: tensor {} is also in {}", path, quote(info.name),
           files_[at->second.file].path());
    }
  }
}

Tensor Checkpoint::tensor(std::string_view name, const Shape& shape) {
  return tensor(name, {Dtype::f32, Dtype::f16, Dtype::bf16}, shape);
}

Tensor Checkpoint::tensor(std::string_view name, std::initializer_list<Dtype> types,
                          const Shape& shape) {
  const auto found = places_.find(name);
  if (found == places_.end()) {
    fail(Code::bad_file, "{}: tensor {} is missing, expected {}", weights_path_, quote(name),
         to_string(shape));
  }
  const TensorInfo& info = *found->second.info;
  if (!info.dtype || std::find(types.begin(), types.end(), *info.dtype) == types.end()) {
    fail(Code::bad_file, "{}: expected dtype {}, found {}", place(name), names_of(types),
         info.dtype_name);
  }
  const Tensor tensor = files_[found->second.file].tensor(info);
  if (tensor.shape != shape) {
    fail(Code::bad_file, "{}: expected shape {}, found {}", place(name), to_string(shape),
         to_string(tensor.shape));
  }
  found->second.used = true;
  given_.push_back(&found->second);
  return tensor;
}

void Checkpoint::will_need(std::string_view name, int64_t first, int64_t n) const {
  const auto found = places_.find(name);
  if (found != places_.end()) files_[found->second.file].will_need(*found->second.info, first, n);
}

void Checkpoint::release() {
  for (const Place* place : given_) files_[place->file].release(*place->info);
  given_.clear();
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? nullptr : found->second.info;
}

std::string Checkpoint::place(std::string_view name) const {
  const auto found = places_.find(name);
  LORRY_CHECK(found != places_.end(), "{}", name);
  return fmt::format("{}: tensor {}", files_[found->second.file].path(), quote(name));
}

void Checkpoint::dismiss(std::string_view name) {
  const auto found = places_.find(name);
  if (found != places_.end()) found->second.used = true;
}

void Checkpoint::dismiss_ending(std::string_view ending) {
  for (auto& [name, place] : places_) {
    if (name.ends_with(ending)) place.used = true;
  }
}

std::vector<std::string> Checkpoint::unused() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : places_) {
    if (!place.used) names.emplace_back(name);
  }
  return names;
}

int64_t Checkpoint::total_bytes() const {
  int64_t bytes = 0;
  for (const SafetensorsFile& file : files_) bytes += file.file_bytes();
  return bytes;
}

Digest Checkpoint::digest() const {
  Sha256 sha;
  sha.update(std::as_bytes(std::span(config_digest_)));
  for (const SafetensorsFile& file : files_) {
    sha.update(std::as_bytes(std::span(file.header_digest())));
    const int64_t bytes = file.file_bytes();
    sha.update(std::as_bytes(std::span(&bytes, 1)));
  }
  return sha.finish();
}

}  // namespace lorry
