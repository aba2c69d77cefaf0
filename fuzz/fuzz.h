// What the fuzzers share. A fuzzer calls production code as the program does; anything but an
// lorry::Error that blames the input is a finding: it aborts.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <unistd.h>

#include "base/error.h"

namespace lorry::fuzz {

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// The parts of an input of several texts: they are separated by lines "---". Always `n` of them;
// the last one has all the rest.
inline std::vector<std::string_view> split(std::string_view input, size_t n) {
  constexpr std::string_view kSeparator = "\n---\n";
  std::vector<std::string_view> parts;
  while (parts.size() + 1 < n) {
    const size_t at = input.find(kSeparator);
    parts.push_back(input.substr(0, at));
    input = at == input.npos ? std::string_view() : input.substr(at + kSeparator.size());
  }
  parts.push_back(input);
  return parts;
}

// Runs what may refuse its input. Code::internal is never the input's fault (a panic in ffi/, too).
template <class F>
void may_refuse(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    LORRY_CHECK(e.code() != Code::internal, "{}", e.what());
  }
}

// An empty folder that is removed with all that is in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }
  // Overwrites the file `name` in place; returns its path.
  std::string write(const std::string& name, std::string_view content) const;

 private:
  std::string path_;
};

}  // namespace lorry::fuzz
