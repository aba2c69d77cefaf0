#include "base/text.h"

#include <gtest/gtest.h>

namespace lorry {
namespace {

TEST(Text, percent_encode_keeps_the_unreserved_only) {
  EXPECT_EQ(percent_encode("aZ09-._~ /+=\xc3\xa9%", true), "aZ09-._~%20/%2B%3D%C3%A9%25");
  EXPECT_EQ(percent_encode("a/b", false), "a%2Fb");
  EXPECT_EQ(percent_encode("org/name\r\n \xc3\xa9", true), "org/name%0D%0A%20%C3%A9");
}

TEST(Text, lower_case_is_of_ascii_alone) {
  EXPECT_EQ(lower_case("Content-TYPE [@Z\xc3\x89]"), "content-type [@z\xc3\x89]");
}

TEST(Text, letters_and_digits_end_where_they_should) {
  for (const char c : {'A', 'Z', 'a', 'z', '0', '9'}) EXPECT_TRUE(is_letter_or_digit(c)) << c;
  for (const char c : {'@', '[', '`', '{', '/', ':', '_', '\xe9'}) {
    EXPECT_FALSE(is_letter_or_digit(c)) << c;
  }
}

TEST(Text, hex_has_two_digits_a_byte) {
  EXPECT_EQ(to_hex(std::as_bytes(std::span("\x01\xab\xff", 3))), "01abff");
  EXPECT_EQ(to_hex({}), "");
}

}  // namespace
}  // namespace lorry
