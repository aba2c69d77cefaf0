// PackedFile: one file with all matrices of a model as `lorry quantize` leaves them: quantised
// linears in the kernels' own layout, the rest row by row. It is mapped, not read. The header is
// checked whole when the file is opened; what the model needs of it is for the loader to compare.
// docs/quantisation.md has the format byte by byte. Const methods may be called from any thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapping.h"
#include "base/sha256.h"
#include "base/thread_pool.h"
#include "lorry/tensor.h"
#include "weights/quant_scheme.h"

namespace lorry {

struct PackedFormat {
  QuantScheme::Kind kind = QuantScheme::Kind::none;
  int32_t group = 0;  // inputs of a scale; 0: all
  friend bool operator==(const PackedFormat&, const PackedFormat&) = default;
};

// A matrix: of kind none a tensor, row by row; otherwise panels of 64 outputs.
struct PackedPiece {
  std::string name;  // "embed", "layers.3.qkv"
  PackedFormat format;
  Dtype dtype = Dtype::bf16;  // of kind none: f32, f16 or bf16
  Shape shape;                // of kind none that of the tensor, otherwise [groups, out, in]
  int64_t bytes = 0;
  int64_t offset = 0;  // in the file; a multiple of kPackedPage
  std::string sha256;  // of its bytes, hex
};

struct PackedInfo {
  std::string source_digest;  // hex: of the model that was packed, and of its config.json
  std::string config_sha256;
  PackedFormat linears, head;
  std::vector<PackedPiece> pieces;  // in the order of the file
};

inline constexpr std::string_view kPackedName = "model.lorry";
inline constexpr int64_t kPackedPage = 4096;
inline constexpr uint32_t kPackedVersion = 1;

class PackedFile {
 public:
  static bool in_folder(const std::string& folder);
  // Throws Error: not_found, unsupported (another version), bad_file (damaged; says where).
  static PackedFile open(const std::string& path);

  const std::string& path() const { return path_; }
  int64_t file_bytes() const { return static_cast<int64_t>(mapping_.size()); }
  const PackedInfo& info() const { return info_; }
  // Null when there is none of that name.
  const PackedPiece* find(std::string_view name) const;
  // Read only. Requires: a piece of info().
  std::byte* data(const PackedPiece& piece) const { return mapping_.data() + piece.offset; }
  // The same read into memory of one's own, p.bytes, on all threads of `pool`. Throws
  // Error(bad_file) when it cannot be read.
  void read(const PackedPiece& piece, std::byte* to, ThreadPool& pool) const;
  // Reads all of the file and compares each piece with its checksum. Throws Error(bad_file).
  void check_content() const;

 private:
  PackedFile() = default;

  std::string path_;
  Mapping mapping_;
  PackedInfo info_;
};

// Writes such a file, piece after piece: one piece at a time is in memory. Without finish() the
// file is not valid, and its owner removes it. Throws Error(invalid_argument) when the disk is full
// or fails: the room is asked for first.
class PackedWriter {
 public:
  // `info`: all but offsets and checksums.
  PackedWriter(std::string path, PackedInfo info);
  ~PackedWriter();
  PackedWriter(const PackedWriter&) = delete;
  PackedWriter& operator=(const PackedWriter&) = delete;

  // The next piece. Requires: its name, all of its bytes; rows are dense.
  void write(std::string_view name, std::span<const std::byte> bytes);
  // Header, and all on the disk. Requires: every piece was written.
  void finish();
  int64_t file_bytes() const { return end_; }

 private:
  void put(std::span<const std::byte> bytes, int64_t offset);

  std::string path_;
  PackedInfo info_;
  size_t next_ = 0;
  int64_t end_ = 0;
  int fd_ = -1;
};

}  // namespace lorry
