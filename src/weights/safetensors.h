// SafetensorsFile: one open safetensors file, checked before any tensor of it can be asked for.
// Base models are mapped (their pages are the system's to keep; the file must not change while
// it is served); adapters, which come from users, are read into own memory with a limit on their
// size. Const methods may be called from any thread; Tensors live as long as the file object.
#pragma once
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapping.h"
#include "base/memory.h"
#include "base/sha256.h"
#include "lorry/tensor.h"
#include "weights/safetensors_header.h"

namespace lorry {

enum class Access { mapped, read };

class SafetensorsFile {
 public:
  // Throws Error: not_found (cannot be opened), unsupported (GGUF or pickle, with how to
  // convert), bad_file (larger than max_bytes, a Git LFS pointer, or broken; says where).
  static SafetensorsFile open(const std::string& path, Access access,
                              int64_t max_bytes = std::numeric_limits<int64_t>::max());
  SafetensorsFile(SafetensorsFile&& other) noexcept = default;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept = default;

  const std::string& path() const { return path_; }
  int64_t file_bytes() const { return file_bytes_; }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }  // in data order
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }

  // Null when there is none of that name.
  const TensorInfo* find(std::string_view name) const;
  bool has(std::string_view name) const { return find(name) != nullptr; }
  // A dense view, aligned to its element size. Throws Error: bad_file when there is none of that
  // name, unsupported when its type or rank (> 4) is one that Tensor does not have.
  Tensor tensor(std::string_view name) const;
  Tensor tensor(const TensorInfo& info) const;  // Requires: info is one of tensors().
  // Rows [first, first + n) of it, as a matrix of its last dimension, will be read soon, if they
  // are mapped. Nothing happens for rows that it does not have.
  void will_need(const TensorInfo& info, int64_t first, int64_t n) const;
  // Its values were read and need not stay in this process's memory; reading them again is slower.
  void release(const TensorInfo& info) const;

  // SHA-256 of the header (names, types, shapes, places): cheap, and enough for a file that its
  // owner vouches for.
  const Digest& header_digest() const { return header_digest_; }
  // SHA-256 of header and data: identity of an adapter.
  Digest content_digest() const;

 private:
  SafetensorsFile() = default;
  void index_names();
  void read_data(int fd, Access access, int64_t data_start);
  size_t index_of(const TensorInfo& info) const;
  bool mapped(const std::byte* data) const;

  std::string path_;
  int64_t file_bytes_ = 0;
  SafetensorsHeader header_;
  Digest header_digest_{};
  std::vector<uint32_t> by_name_;  // indices into header_.tensors, sorted by name
  std::vector<std::byte*> data_;   // where each tensor's bytes are
  Mapping mapping_;
  Buffer own_;
};

// Writes the tensors (any pitch; rows become dense) as a safetensors file that appears whole or
// not at all. Throws Error(invalid_argument) when it cannot be written.
void write_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace lorry
