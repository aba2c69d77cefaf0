#include "base/sha256.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include "base/error.h"
#include "base/text.h"

namespace lorry {

struct Sha256::Context {
  EVP_MD_CTX* evp = EVP_MD_CTX_new();
  ~Context() { EVP_MD_CTX_free(evp); }
};

Sha256::Sha256() : context_(std::make_unique<Context>()) {
  LORRY_CHECK(context_->evp != nullptr &&
              EVP_DigestInit_ex(context_->evp, EVP_sha256(), nullptr) == 1);
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

}  // namespace lorry
