// Hashes of files as the hub names them (OpenSSL).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "fetch/deadline.h"

namespace lorry {

// What a hub's ETag promises about a file: 64 hex digits are its SHA-256 (LFS), 40 are git's SHA-1
// of "blob SIZE\0" and the content.
class ContentHash {
 public:
  // Throws Error(bad_file) unless `hex` is 40 or 64 lower-case hex digits; `label` names the file.
  ContentHash(std::string hex, std::string_view label);

  const std::string& hex() const { return hex_; }
  const char* name() const { return hex_.size() == 64 ? "SHA-256" : "git SHA-1"; }
  // Of the file at `path`, in the same kind. Throws Error(bad_file) where it cannot be read, and as
  // the deadline does.
  std::string of_file(const std::string& path, const Deadline& deadline) const;

 private:
  std::string hex_;
};

bool is_hex(std::string_view text, size_t n_digits);  // lower case
std::string sha256_hex(std::string_view text);

}  // namespace lorry
