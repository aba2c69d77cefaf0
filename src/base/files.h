// Small file helpers whose errors name the path.
#pragma once
#include <cstddef>
#include <cstdio>
#include <span>
#include <string>
#include <string_view>

namespace lorry {

bool file_exists(const std::string& path);
bool is_directory(const std::string& path);
// The whole file. Throws Error(not_found) when it cannot be opened, Error(bad_file) when it is
// longer than max_bytes or cannot be read.
std::string read_file(const std::string& path, size_t max_bytes = size_t{64} << 20);
// A file that appears whole or not at all: bytes go to a temporary name beside `path`, commit()
// renames it. Without commit() the temporary file is removed. A path that is a device, a pipe or a
// socket is refused. All throw Error(invalid_argument).
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  std::string path_;
  std::string temporary_;
  std::FILE* file_ = nullptr;
};

// Writes the whole file through an AtomicFile.
void write_file(const std::string& path, std::string_view content);
std::string join_path(const std::string& folder, const std::string& name);

}  // namespace lorry
