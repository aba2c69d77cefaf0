#include "cli/demo.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/embedded.h"
#include "base/error.h"
#include "cli/tar.h"

extern "C" const lorry::EmbeddedFile lorry_demo_begin[];  // one: a tar

namespace lorry {

namespace fs = std::filesystem;

namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void throw_errno(const fs::path& path) {
  throw fs::filesystem_error("cannot write", path, std::error_code(errno, std::generic_category()));
}

// A real folder, ours, that nobody else can change.
bool is_own_folder(const fs::path& path) {
  struct stat s{};
  return lstat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode) && s.st_uid == geteuid() &&
         (s.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

bool has_content(const fs::path& path, std::span<const std::byte> content) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
  struct stat s{};
  if (file.fd() < 0 || fstat(file.fd(), &s) != 0 || !S_ISREG(s.st_mode)) return false;
  if (static_cast<size_t>(s.st_size) != content.size()) return false;
  std::vector<std::byte> buffer(size_t{1} << 18);
  while (!content.empty()) {
    const ssize_t n = read(file.fd(), buffer.data(), std::min(buffer.size(), content.size()));
    if (n <= 0 || std::memcmp(buffer.data(), content.data(), static_cast<size_t>(n)) != 0) {
      return false;
    }
    content = content.subspan(static_cast<size_t>(n));
  }
  return true;
}

bool is_intact(const fs::path& folder, const std::vector<TarFile>& files) {
  if (!is_own_folder(folder)) return false;
  for (const TarFile& file : files) {
    fs::path parent = folder;
    const fs::path relative(file.path);
    for (const fs::path& part : relative.parent_path()) {
      parent /= part;
      if (!is_own_folder(parent)) return false;
    }
    if (!has_content(folder / relative, file.content)) return false;
  }
  return true;
}

void write_new(const fs::path& path, std::span<const std::byte> content) {
  const Descriptor file(
      open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (file.fd() < 0) throw_errno(path);
  while (!content.empty()) {
    const ssize_t n = write(file.fd(), content.data(), content.size());
    if (n < 0) throw_errno(path);
    content = content.subspan(static_cast<size_t>(n));
  }
}

fs::path make_unique_folder(const fs::path& parent, const char* name) {
  std::string path = parent / name;
  path += "XXXXXX";
  if (mkdtemp(path.data()) == nullptr) throw_errno(path);
  return path;
}

void make_folder(const fs::path& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) throw_errno(path);
}

// A new folder in `parent` with all files; removed again when that fails.
fs::path unpack(const fs::path& parent, const char* name, const std::vector<TarFile>& files) {
  const fs::path folder = make_unique_folder(parent, name);
  try {
    for (const TarFile& file : files) {
      fs::path place = folder;
      const fs::path relative(file.path);
      for (const fs::path& part : relative.parent_path()) make_folder(place /= part);
      write_new(folder / relative, file.content);
    }
  } catch (const fs::filesystem_error&) {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
    throw;
  }
  return folder;
}

// The folder of this content in the cache, made when it is missing, and made anew when it is not as
// it should be. What runs on the old one keeps its open files.
std::optional<std::string> use_cache(const std::string& cache, const std::vector<TarFile>& files) {
  if (cache.empty()) return std::nullopt;
  const fs::path root = fs::path(cache) / "lorry";
  const fs::path folder = root / ("demo-" + std::string(lorry_demo_begin->digest, 16));
  if (is_intact(folder, files)) return folder;
  try {
    fs::create_directories(cache);
    make_folder(root);
    if (!is_own_folder(root)) return std::nullopt;
    const fs::path fresh = unpack(root, ".new-", files);
    std::error_code error;
    fs::rename(fresh, folder, error);
    if (error) {
      // Something is in the way: what another start has just made, or a damaged folder.
      if (!is_intact(folder, files)) {
        const fs::path old = make_unique_folder(root, ".old-");
        fs::rename(folder, old / "demo");
        fs::rename(fresh, folder);
        fs::remove_all(old, error);
      }
      fs::remove_all(fresh, error);
    }
  } catch (const fs::filesystem_error&) {
    return std::nullopt;  // read-only, full: the private folder is next
  }
  if (!is_intact(folder, files)) return std::nullopt;
  return folder;
}

}  // namespace

DemoFiles::DemoFiles(const std::string& cache, const std::string& temporary) {
  const std::vector<TarFile> files =
      read_tar(std::as_bytes(std::span(lorry_demo_begin->content())));
  if (const auto folder = use_cache(cache, files)) {
    folder_ = *folder;
    return;
  }
  try {
    folder_ = unpack(temporary, "lorry-demo-", files);
  } catch (const fs::filesystem_error& e) {
    fail(
        Code::unavailable,
        "the demo model can be unpacked neither into the cache folder '{}' nor into '{}' ({}); set "
        "XDG_CACHE_HOME or TMPDIR to a folder that can be written",
        cache, temporary, e.code().message());
  }
  is_private_ = true;
}

void DemoFiles::remove() {
  if (!is_private_) return;
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
  is_private_ = false;
}

DemoFiles::~DemoFiles() { remove(); }

}  // namespace lorry
