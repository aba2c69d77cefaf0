#include "fetch/file_hash.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <utility>

#include <openssl/evp.h>

#include "base/error.h"
#include "base/sha256.h"
#include "base/text.h"

namespace lorry {

namespace {

struct FreeContext {
  void operator()(EVP_MD_CTX* c) const { EVP_MD_CTX_free(c); }
};
struct Close {
  void operator()(std::FILE* f) const { std::fclose(f); }
};

}  // namespace

bool is_hex(std::string_view text, size_t n_digits) {
  return text.size() == n_digits &&
         text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

ContentHash::ContentHash(std::string hex, std::string_view label) : hex_(std::move(hex)) {
  if (!is_hex(hex_, 40) && !is_hex(hex_, 64)) {
    fail(Code::bad_file,
         "{}: expected an ETag that is a hash (40 or 64 hex digits), found {}: the endpoint is no "
         "Hugging Face hub",
         label, quote(hex_));
  }
}

std::string ContentHash::of_file(const std::string& path, const Deadline& deadline) const {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rbe"));
  if (!file) fail(Code::bad_file, "{}: cannot read: {}", path, std::strerror(errno));
  const std::unique_ptr<EVP_MD_CTX, FreeContext> context(EVP_MD_CTX_new());
  LORRY_CHECK(context != nullptr);
  const bool is_git = hex_.size() == 40;
  LORRY_CHECK(EVP_DigestInit_ex(context.get(), is_git ? EVP_sha1() : EVP_sha256(), nullptr) == 1);
  if (is_git) {
    std::error_code ignored;  // a size that is wrong gives a hash that is wrong
    const std::string head = fmt::format("blob {}", std::filesystem::file_size(path, ignored));
    LORRY_CHECK(EVP_DigestUpdate(context.get(), head.c_str(), head.size() + 1) == 1);
  }
  char chunk[1 << 16];
  size_t n = 0;
  while ((n = std::fread(chunk, 1, sizeof chunk, file.get())) > 0) {
    deadline.check();
    LORRY_CHECK(EVP_DigestUpdate(context.get(), chunk, n) == 1);
  }
  if (std::ferror(file.get()) != 0) {
    fail(Code::bad_file, "{}: cannot read: {}", path, std::strerror(errno));
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  LORRY_CHECK(EVP_DigestFinal_ex(context.get(), digest, &size) == 1);
  return to_hex(std::as_bytes(std::span(digest, size)));
}

std::string sha256_hex(std::string_view text) {
  Sha256 hash;
  hash.update(text);
  return to_hex(hash.finish());
}

}  // namespace lorry
