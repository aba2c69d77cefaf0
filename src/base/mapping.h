// Mapping: a whole file in memory, read only. Its pages are the system's to keep; the file must not
// be changed while it is mapped.
#pragma once
#include <cstddef>
#include <string>

namespace lorry {

class Mapping {
 public:
  Mapping() = default;
  // `fd` may be closed afterwards. Throws Error(bad_file) naming `path`.
  Mapping(int fd, size_t bytes, const std::string& path);
  // The same by name, with its present size; no data when it is empty. Throws Error: not_found,
  // bad_file (no regular file).
  static Mapping open(const std::string& path);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  // Says that [begin, begin + bytes) will be read soon; that it is read now, so that its pages come
  // in one go and not sixteen at a fault (nothing happens where it is no mapping); that it was
  // read, and need not stay in this process's memory. Requires: within one mapping.
  static void will_need(const std::byte* begin, size_t bytes);
  static void fault_in(const std::byte* begin, size_t bytes);
  static void release(const std::byte* begin, size_t bytes);

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace lorry
