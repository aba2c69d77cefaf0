// SHA-256 and HMAC-SHA-256 (OpenSSL). One object hashes one message.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace lorry {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text);
  // The bytes of a number, as this machine has them.
  template <class T>
    requires(std::is_arithmetic_v<T> || std::is_enum_v<T>)
  void update_value(const T& value) {
    update(std::as_bytes(std::span(&value, 1)));
  }
  Digest finish();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
};

std::string to_hex(const Digest& digest);

std::string hmac_sha256(std::string_view key, std::string_view text);  // 32 bytes
// Whether they are equal; how long it takes does not depend on the bytes.
bool equal_in_constant_time(const Digest& a, const Digest& b);

}  // namespace lorry
