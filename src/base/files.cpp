#include "base/files.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

namespace lorry {

namespace {

struct Close {
  void operator()(std::FILE* f) const { std::fclose(f); }
};
using File = std::unique_ptr<std::FILE, Close>;

}  // namespace

bool file_exists(const std::string& path) {
  struct stat s{};
  return stat(path.c_str(), &s) == 0 && S_ISREG(s.st_mode);
}

bool is_directory(const std::string& path) {
  struct stat s{};
  return stat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode);
}

std::string read_file(const std::string& path, size_t max_bytes) {
  const File file(std::fopen(path.c_str(), "rbe"));
  if (!file) fail(Code::not_found, "{}: {}", path, std::strerror(errno));
  std::string content;
  char chunk[1 << 16];
  size_t n = 0;
  while ((n = std::fread(chunk, 1, sizeof chunk, file.get())) > 0) {
    content.append(chunk, n);
    if (content.size() > max_bytes)
      fail(Code::bad_file, "{}: longer than {} bytes", path, max_bytes);
  }
  if (std::ferror(file.get()) != 0) fail(Code::bad_file, "{}: {}", path, std::strerror(errno));
  return content;
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  // The renaming would put a file in the place of a device such as /dev/null.
  struct stat s{};
  if (stat(path_.c_str(), &s) == 0 && !S_ISREG(s.st_mode) && !S_ISDIR(s.st_mode)) {
    fail(Code::invalid_argument, "{}: cannot write: this is no regular file; name one", path_);
  }
  int fd = -1;
  for (int i = 0; fd < 0; ++i) {
    temporary_ = fmt::format("{}.{}.{}.tmp", path_, getpid(), i);
    fd = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0 && errno != EEXIST) {
      fail(Code::invalid_argument, "{}: cannot write: {}", path_, std::strerror(errno));
    }
  }
  file_ = fdopen(fd, "wb");
}

AtomicFile::~AtomicFile() {
  if (file_ == nullptr) return;
  std::fclose(file_);
  std::remove(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;  // fwrite wants an address even for nothing
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_) != bytes.size()) {
    fail(Code::invalid_argument, "{}: cannot write: {}", path_, std::strerror(errno));
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::commit() {
  const bool closed = std::fclose(std::exchange(file_, nullptr)) == 0;
  if (closed && std::rename(temporary_.c_str(), path_.c_str()) == 0) return;
  const int reason = errno;
  std::remove(temporary_.c_str());
  fail(Code::invalid_argument, "{}: cannot write: {}", path_, std::strerror(reason));
}

void write_file(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

std::string join_path(const std::string& folder, const std::string& name) {
  if (folder.empty() || folder.back() == '/') return folder + name;
  return folder + "/" + name;
}

}  // namespace lorry
