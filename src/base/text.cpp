#include "base/text.h"

#include <algorithm>

#include <fmt/format.h>

namespace lorry {

bool is_letter_or_digit(char c) {
  return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

std::string lower_case(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  return out;
}

std::string percent_encode(std::string_view text, bool keep_slash) {
  constexpr std::string_view kPlain = "-._~";
  std::string out;
  for (const char c : text) {
    if (is_letter_or_digit(c) || kPlain.find(c) != kPlain.npos || (c == '/' && keep_slash)) {
      out += c;
    } else {
      out += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return out;
}

std::string to_hex(std::span<const std::byte> bytes) {
  std::string hex;
  for (const std::byte b : bytes) hex += fmt::format("{:02x}", static_cast<unsigned>(b));
  return hex;
}

}  // namespace lorry
