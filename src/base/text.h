// Text as bytes: ASCII rules, whatever the locale. Pure functions, any thread.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace lorry {

bool is_letter_or_digit(char c);  // A-Z a-z 0-9

// A-Z as a-z, all other bytes as they are.
std::string lower_case(std::string_view text);

// Every byte outside of A-Z a-z 0-9 - . _ ~ (and / where it is kept) as %XX: RFC 3986.
std::string percent_encode(std::string_view text, bool keep_slash);

// Two lower-case digits a byte.
std::string to_hex(std::span<const std::byte> bytes);

}  // namespace lorry
