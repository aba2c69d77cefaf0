#include "base/json.h"

#include <string>

#include <boost/json/serialize.hpp>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/files.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string refusal(const std::string& text) {
  try {
    parse_json(text, "the request");
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::bad_file);
    return e.what();
  }
  return "accepted";
}

TEST(Json, reads_every_kind_of_value) {
  const std::string text =
      R"({"a":[1,-2,18446744073709551615,1.5,true,false,null],"b":{"c":"é\n\u00e9"}})";
  EXPECT_EQ(json::serialize(parse_json(text, "x")),
            R"({"a":[1,-2,18446744073709551615,1.5E0,true,false,null],"b":{"c":"é\né"}})");
}

TEST(Json, blanks_around_the_value_are_allowed) {
  EXPECT_EQ(parse_json(" \n{ } \r\n\t", "x").as_object().size(), 0U);
  EXPECT_EQ(parse_json(" 12 ", "x").as_int64(), 12);
}

TEST(Json, a_duplicate_key_is_refused_and_named) {
  EXPECT_THAT(refusal(R"({"a":1,"b":{"a":2},"a":3})"),
              AllOf(HasSubstr("the request"), HasSubstr("\"a\""), HasSubstr("byte 21")));
  EXPECT_THAT(refusal(R"({"":1,"":2})"), HasSubstr("twice"));
  EXPECT_THAT(refusal(R"({"ab":1,"\u0061b":2})"), HasSubstr("\"ab\""));
}

TEST(Json, the_same_key_in_different_objects_is_fine) {
  EXPECT_EQ(refusal(R"([{"a":1},{"a":1,"b":{"a":1}}])"), "accepted");
}

TEST(Json, nesting_is_limited) {
  EXPECT_EQ(refusal(std::string(64, '[') + std::string(64, ']')), "accepted");
  EXPECT_THAT(refusal(std::string(65, '[') + std::string(65, ']')), HasSubstr("byte 64"));
  EXPECT_THAT(refusal(std::string(1000000, '[')), HasSubstr("byte 64"));
}

TEST(Json, bytes_after_the_value_are_refused_with_their_offset) {
  EXPECT_THAT(refusal("{} x"), HasSubstr("byte 3"));
  EXPECT_THAT(refusal("{}{}"), HasSubstr("byte 2"));
  EXPECT_THAT(refusal(std::string("{}\0", 3)), HasSubstr("byte 2"));
}

TEST(Json, an_incomplete_value_is_refused_with_its_offset) {
  EXPECT_THAT(refusal(R"({"a":)"), HasSubstr("byte 5"));
  EXPECT_THAT(refusal(""), HasSubstr("byte 0"));
  EXPECT_THAT(refusal(R"({"a":1,})"), HasSubstr("byte 7"));
}

TEST(Json, text_that_is_not_utf8_is_refused) {
  EXPECT_THAT(refusal("{\"a\":\"\xff\"}"), HasSubstr("byte 6"));
  EXPECT_NE(refusal("\"\xc0\x80\""), "accepted");      // overlong
  EXPECT_NE(refusal("\"\xed\xa0\x80\""), "accepted");  // an encoded surrogate
  EXPECT_NE(refusal(R"("\ud800")"), "accepted");       // a lone surrogate
  EXPECT_NE(refusal(R"("\udc00\ud800")"), "accepted");
  EXPECT_EQ(refusal(R"("\ud83d\ude00")"), "accepted");
}

TEST(Json, what_is_not_json_is_refused) {
  for (const char* text : {"NaN", "Infinity", "{'a':1}", "[1,]", "01", "+1", "1.", ".5", "// c\n1",
                           "\"\t\"", "tru", "[1 2]"}) {
    EXPECT_NE(refusal(text), "accepted") << text;
  }
}

TEST(Json, a_number_beyond_the_range_of_double_is_refused) {
  EXPECT_THAT(refusal(R"({"a":1e999})"), HasSubstr("byte"));
  EXPECT_THAT(refusal("[-1e999]"), HasSubstr("byte"));
  EXPECT_THAT(refusal("1" + std::string(400, '0')), HasSubstr("byte"));
}

TEST(Json, files_are_named_in_the_message) {
  const std::string path = join_path(testing::TempDir(), "json_test.json");
  write_file(path, R"({"a":1,"a":2})");
  try {
    parse_json_file(path);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr(path));
  }
  EXPECT_THROW(parse_json_file(path, 5), Error);
  EXPECT_THROW(parse_json_file(path + ".absent"), Error);
}

}  // namespace
}  // namespace lorry
