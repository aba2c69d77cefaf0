// Checkpoint: the folder of a base model: config.json and model.safetensors, or the shards that
// model.safetensors.index.json names. All files are opened and checked at once; tensors are
// mapped. The loader asks for each tensor by name and shape; what it never asked for is listed.
// One thread loads; Tensors live as long as the Checkpoint.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"
#include "lorry/tensor.h"
#include "weights/config.h"
#include "weights/safetensors.h"

namespace lorry {

class Checkpoint {
 public:
  // Throws Error: not_found (no such folder or file), unsupported (only GGUF or pickle weights),
  // bad_file (a broken file; a shard or a tensor missing, twice, or that the index does not name).
  static Checkpoint open(const std::string& folder);

  const std::string& folder() const { return folder_; }
  const Config& config() const { return config_; }

  bool has(std::string_view name) const { return places_.contains(name); }
  // The tensor `name`: f32, f16 or bf16, of this shape. Throws Error(bad_file) naming file, tensor,
  // what was expected and what was found.
  Tensor tensor(std::string_view name, const Shape& shape);
  // The same for one of these types.
  Tensor tensor(std::string_view name, std::initializer_list<Dtype> types, const Shape& shape);
  // Says that rows of the tensor will be read soon, if there is one: its file is read ahead.
  void will_need(std::string_view name, int64_t first, int64_t n) const;
  // What tensor() gave so far was read and need not stay in this process's memory.
  void release();
  // Null when there is none of that name.
  const TensorInfo* find(std::string_view name) const;
  // `<file>: tensor "<name>"`, the start of an error about the values of a tensor that is there.
  std::string place(std::string_view name) const;

  // Counts as used from now on, if it is there: nothing depends on it.
  void dismiss(std::string_view name);
  void dismiss_ending(std::string_view ending);  // all names that end so

  // Names that tensor() was never asked for and that were not dismissed, sorted.
  std::vector<std::string> unused() const;

  int64_t total_bytes() const;  // of all weight files
  // SHA-256 over config.json and the headers and sizes of the weight files: cheap, and changes
  // with everything but the values of the weights.
  Digest digest() const;
  const Digest& config_digest() const { return config_digest_; }  // SHA-256 of config.json

 private:
  struct Place {
    size_t file;
    const TensorInfo* info;
    bool used = false;
  };

  Checkpoint(std::string folder, Config config, Digest config_digest);
  void open_single(const std::string& path);
  void open_shards(const std::string& index_path);
  void add_file(const std::string& path);
  void check_no_extra_shard(const std::map<std::string, std::string>& weight_map) const;

  std::string folder_;
  Config config_;
  Digest config_digest_{};
  std::string weights_path_;  // the single file, or the index: named when a tensor is missing
  std::vector<SafetensorsFile> files_;
  std::map<std::string_view, Place, std::less<>> places_;  // keys live in files_
  std::vector<const Place*> given_;                        // since the last release()
};

}  // namespace lorry
