// The file system under a cache of downloads: folders, locks between processes, files that are
// being downloaded. All errors are one line with the path, what failed and what to do:
// Error(over_capacity) where the disk is full, Error(invalid_argument) else.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "fetch/deadline.h"

namespace lorry {

// With all folders above it; what exists is left alone.
void make_folders(const std::string& path);

// Throws Error(over_capacity) unless the disk of `folder`, which must exist, has room for `bytes`
// and min_free more.
void require_free_space(const std::string& folder, int64_t bytes, int64_t min_free);

// The size of the regular file that `path` is or links to; -1 where there is none. Throws
// Error(invalid_argument) for a link that another user put there: neither this user, nor root, nor
// the owner of the folder that it is in.
int64_t file_size_of(const std::string& path);
// The rule above; user ids.
struct LinkOwners {
  uint32_t link = 0, folder = 0, self = 0;
};
bool is_trusted_link(const LinkOwners& owners);

// Makes `path` a symbolic link to `target`, replacing what is there (a folder is refused).
void make_link(const std::string& target, const std::string& path);

// flock() on a file that stays: huggingface_hub's own kind of lock. Waits for other holders
// (threads and processes) until the deadline, and throws as it does.
class FileLock {
 public:
  FileLock(const std::string& path, const Deadline& deadline);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  bool try_lock(const std::string& path);

  int fd_ = -1;
};

// A file on its way: what an earlier process left at `path` is gone on with. Symbolic links are not
// followed. Left in place when the object goes, for the next try, unless it was committed or
// removed.
class PartialFile {
 public:
  explicit PartialFile(std::string path);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  int64_t size() const { return size_; }
  // Appends. Where that fails (a full disk) the file is removed before the error is thrown.
  void write(std::span<const std::byte> bytes);
  void clear();
  // To the disk, and under its last name in the same file system.
  void commit(const std::string& path);
  void remove();

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

}  // namespace lorry
