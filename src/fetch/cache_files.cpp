#include "fetch/cache_files.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/error.h"
#include "base/system.h"

namespace lorry {

namespace {

[[noreturn]] void fail_io(const std::string& path, const char* doing, int reason) {
  const char* advice = "the cache must be a folder that this user may write to";
  Code code = Code::invalid_argument;
  if (reason == ENOSPC || reason == EDQUOT || reason == EFBIG) {
    code = Code::over_capacity;
    advice = "free some space, or set another cache folder";
  } else if (reason == ELOOP) {
    advice = "a symbolic link is in the way; remove it";
  }
  fail(code, "{}: cannot {}: {}; {}", path, doing, std::strerror(reason), advice);
}

}  // namespace

void make_folders(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) fail_io(path, "make the folder", error.value());
}

void require_free_space(const std::string& folder, int64_t bytes, int64_t min_free) {
  struct statvfs s{};
  if (statvfs(folder.c_str(), &s) != 0) fail_io(folder, "ask for the free space", errno);
  const double free_bytes = static_cast<double>(s.f_bavail) * static_cast<double>(s.f_frsize);
  if (free_bytes >= static_cast<double>(bytes) + static_cast<double>(min_free)) return;
  fail(Code::over_capacity,
       "{}: the disk has {} free; the download needs {} and leaves {}: free some space, or set "
       "another "
       "cache folder",
       folder, format_bytes(static_cast<size_t>(free_bytes)),
       format_bytes(static_cast<size_t>(bytes)), format_bytes(static_cast<size_t>(min_free)));
}

bool is_trusted_link(const LinkOwners& owners) {
  return owners.link == owners.self || owners.link == 0 || owners.link == owners.folder;
}

int64_t file_size_of(const std::string& path) {
  struct stat s{};
  if (lstat(path.c_str(), &s) != 0) return -1;
  if (S_ISLNK(s.st_mode)) {
    struct stat folder{};
    const std::string above = std::filesystem::path(path).parent_path();
    if (stat(above.c_str(), &folder) != 0) return -1;
    if (!is_trusted_link({s.st_uid, folder.st_uid, geteuid()})) {
      fail(Code::invalid_argument,
           "{}: a symbolic link that user {} put into the cache; remove it, or set another cache "
           "folder",
           path, s.st_uid);
    }
    if (stat(path.c_str(), &s) != 0) return -1;
  }
  return S_ISREG(s.st_mode) ? static_cast<int64_t>(s.st_size) : -1;
}

void make_link(const std::string& target, const std::string& path) {
  if (symlink(target.c_str(), path.c_str()) == 0) return;
  if (errno != EEXIST) fail_io(path, "link", errno);
  char found[4096];
  const ssize_t n = readlink(path.c_str(), found, sizeof found);
  if (n >= 0 && target == std::string(found, static_cast<size_t>(n))) return;
  if (unlink(path.c_str()) != 0 || symlink(target.c_str(), path.c_str()) != 0) {
    fail_io(path, "link", errno);
  }
}

FileLock::FileLock(const std::string& path, const Deadline& deadline) {
  while (!try_lock(path)) {
    try {
      deadline.nap(std::chrono::milliseconds(50));
    } catch (const Error& e) {
      fail(e.code(), "{} (while waiting for {}, which another download holds)", e.what(), path);
    }
  }
}

bool FileLock::try_lock(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0664);
  if (fd < 0) fail_io(path, "lock", errno);
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    close(fd);
    if (reason == EWOULDBLOCK || reason == EINTR) return false;
    fail_io(path, "lock", reason);
  }
  // Its last holder may have removed the file meanwhile: then others lock a new one.
  struct stat locked{};
  struct stat named{};
  if (fstat(fd, &locked) == 0 && stat(path.c_str(), &named) == 0 && locked.st_ino == named.st_ino &&
      locked.st_dev == named.st_dev) {
    fd_ = fd;
    return true;
  }
  close(fd);
  return false;
}

FileLock::~FileLock() { close(fd_); }

PartialFile::PartialFile(std::string path) : path_(std::move(path)) {
  fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK,
             0666);
  struct stat s{};
  if (fd_ < 0 || fstat(fd_, &s) != 0) fail_io(path_, "write", errno);
  if (!S_ISREG(s.st_mode)) {
    close(std::exchange(fd_, -1));
    fail(Code::invalid_argument, "{}: cannot write: no regular file is in the way; remove it",
         path_);
  }
  size_ = static_cast<int64_t>(s.st_size);
}

PartialFile::~PartialFile() {
  if (fd_ >= 0) close(fd_);
}

void PartialFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int reason = errno;
      remove();
      fail_io(path_, "write", reason);
    }
    size_ += n;
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void PartialFile::clear() {
  if (ftruncate(fd_, 0) != 0) fail_io(path_, "write", errno);
  size_ = 0;
}

void PartialFile::commit(const std::string& path) {
  if (fsync(fd_) != 0) {
    const int reason = errno;
    remove();
    fail_io(path_, "write", reason);
  }
  if (rename(path_.c_str(), path.c_str()) != 0) fail_io(path, "write", errno);
}

void PartialFile::remove() { unlink(path_.c_str()); }

}  // namespace lorry
