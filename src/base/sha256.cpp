#include "base/sha256.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "base/error.h"
#include "base/text.h"

namespace lorry {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

namespace {

// EVP_sha256() names an algorithm that EVP_DigestInit looks up each time, under locks and all over
// memory: most of what a short hash costs.
const EVP_MD* algorithm() {
  static const EVP_MD* const kFetched = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  return kFetched;
}

}  // namespace

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  LORRY_CHECK(context_->evp != nullptr &&
              EVP_DigestInit_ex(context_->evp, algorithm(), nullptr) == 1);
}

Sha256::~Sha256() = default;

void Sha256::update(std::span<const std::byte> bytes) {
  LORRY_CHECK(EVP_DigestUpdate(context_->evp, bytes.data(), bytes.size()) == 1);
}

void Sha256::update(std::string_view text) { update(std::as_bytes(std::span(text))); }

Digest Sha256::finish() {
  Digest digest{};
  unsigned int size = 0;
  LORRY_CHECK(EVP_DigestFinal_ex(context_->evp, digest.data(), &size) == 1 &&
              size == digest.size());
  return digest;
}

std::string to_hex(const Digest& digest) { return to_hex(std::as_bytes(std::span(digest))); }

std::string hmac_sha256(std::string_view key, std::string_view text) {
  Digest digest{};
  unsigned int size = 0;
  LORRY_CHECK(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
                   reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data(),
                   &size) != nullptr &&
              size == digest.size());
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

bool equal_in_constant_time(const Digest& a, const Digest& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

}  // namespace lorry
