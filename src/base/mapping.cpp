#include "base/mapping.h"

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"

namespace lorry {

namespace {

constexpr uintptr_t kPage = 4096;

// The pages that hold [begin, begin + bytes); `whole`: only those that hold nothing else.
void advise(const std::byte* begin, size_t bytes, bool whole, int advice) {
  const auto at = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t from = (whole ? at + kPage - 1 : at) / kPage * kPage;
  const uintptr_t to = (whole ? at + bytes : at + bytes + kPage - 1) / kPage * kPage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, advice);  // only a hint
}

}  // namespace

Mapping::Mapping(int fd, size_t bytes, const std::string& path) : size_(bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  if (p == MAP_FAILED) fail(Code::bad_file, "{}: cannot map: {}", path, std::strerror(errno));
  data_ = static_cast<std::byte*>(p);
}

Mapping Mapping::open(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must not wait for its writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(Code::not_found, "{}: {}", path, std::strerror(errno));
  struct Close {
    int fd;
    ~Close() { close(fd); }
  } const closing{fd};
  struct stat s{};
  if (fstat(fd, &s) != 0) fail(Code::bad_file, "{}: {}", path, std::strerror(errno));
  if (!S_ISREG(s.st_mode)) fail(Code::bad_file, "{}: not a regular file", path);
  if (s.st_size == 0) return {};
  return {fd, static_cast<size_t>(s.st_size), path};
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, size_);
}

void Mapping::will_need(const std::byte* begin, size_t bytes) {
  advise(begin, bytes, false, MADV_WILLNEED);
}
void Mapping::fault_in(const std::byte* begin, size_t bytes) {
  advise(begin, bytes, false, MADV_POPULATE_READ);
}
void Mapping::release(const std::byte* begin, size_t bytes) {
  advise(begin, bytes, true, MADV_DONTNEED);
}

}  // namespace lorry
