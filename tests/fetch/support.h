// What the tests of the sources share: a folder of their own, fast settings, hashes by OpenSSL's
// one-shot functions.
#pragma once
#include <filesystem>
#include <functional>
#include <string>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/sha.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/files.h"
#include "fetch/options.h"

namespace lorry {

inline std::string hex(const unsigned char* bytes, size_t n) {
  std::string text;
  for (size_t i = 0; i < n; ++i) text += fmt::format("{:02x}", bytes[i]);
  return text;
}

inline std::string sha256_of(const std::string& content) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(content.data()), content.size(), digest);
  return hex(digest, sizeof digest);
}

inline std::string git_sha1_of(const std::string& content) {
  const std::string blob = "blob " + std::to_string(content.size()) + '\0' + content;
  unsigned char digest[SHA_DIGEST_LENGTH];
  SHA1(reinterpret_cast<const unsigned char*>(blob.data()), blob.size(), digest);
  return hex(digest, sizeof digest);
}

// Bytes that do not repeat soon.
inline std::string noise(size_t n, uint32_t seed = 1) {
  std::string out(n, '\0');
  for (char& c : out) {
    seed = seed * 1664525 + 1013904223;
    c = static_cast<char>(static_cast<unsigned char>(seed >> 24));
  }
  return out;
}

inline NetworkOptions fast_network() {
  return {.connect_timeout = std::chrono::milliseconds(2000),
          .low_speed_bytes = 100,
          .low_speed_time = std::chrono::seconds(1),
          .total_timeout = std::chrono::milliseconds(20'000),
          .attempts = 3,
          .first_delay = std::chrono::milliseconds(5),
          .max_delay = std::chrono::milliseconds(20),
          .max_retry_after = std::chrono::milliseconds(300)};
}

inline FetchLimits small_limits() {
  return {.max_file_bytes = 1'000'000,
          .max_total_bytes = 1'500'000,
          .max_config_bytes = 10'000,
          .max_listing_bytes = 100'000,
          .max_listed_files = 100,
          .min_free_bytes = 0};
}

// The error that `call` throws; a failure and Code::internal where it throws none.
inline Error error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    return e;
  }
  ADD_FAILURE() << "no error";
  return Error(Code::internal, "no error");
}

class FolderTest : public testing::Test {
 protected:
  FolderTest() {
    std::string pattern = join_path(testing::TempDir(), "fetch_test.XXXXXX");
    EXPECT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  ~FolderTest() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return join_path(folder_, name); }
  // Paths below `root` that end with `end`.
  static std::vector<std::string> files_with_end(const std::string& root, const std::string& end) {
    std::vector<std::string> found;
    if (!is_directory(root)) return found;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root)) {
      if (entry.path().string().ends_with(end)) found.push_back(entry.path());
    }
    return found;
  }

  std::string folder_;
};

}  // namespace lorry
