// What the tests of this folder share: a temporary folder, safetensors files made byte by byte,
// and the message of a refusal.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <gtest/gtest.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/files.h"

namespace lorry::test {

class Folder {
 public:
  Folder() {
    std::string pattern = join_path(testing::TempDir(), "weights_test.XXXXXX");
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    path_ = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return join_path(path_, name); }

 private:
  std::string path_;
};

inline std::string golden(const std::string& name) {
  return std::string(LORRY_SOURCE_DIR "/tests/golden/") + name;
}

// Length, header and data, put together without any check.
inline std::string raw_safetensors(std::string_view header, std::string_view data) {
  std::string file;
  for (size_t i = 0; i < 8; ++i) {
    file += static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i) & 0xffU);
  }
  return file.append(header).append(data);
}

// One tensor of the header, without braces around the whole.
inline std::string entry(const std::string& name, const std::string& dtype,
                         const std::string& shape, int64_t begin, int64_t end) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape +
         R"(,"data_offsets":[)" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

// The message of the Error that f throws; "no error" when it throws none.
template <class F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace lorry::test
