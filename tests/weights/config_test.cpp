#include "weights/config.h"

#include <optional>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "weights/files.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

Config example() {
  return Config::parse(R"({
    "n": 8, "zero": 0, "negative": -3, "huge": 1000000000000, "beyond": 18446744073709551615,
    "one_point_oh": 1.0, "eps": 1e-5, "flag": true, "name": "silu", "nothing": null,
    "ids": [1, 2], "factors": [1, 2.5], "kinds": ["a", "b"],
    "ffn": {"top_k": 2, "inner": {"x": 3}, "null_inside": null}
  })",
                       "/m/config.json");
}

TEST(Config, values_of_every_type) {
  const Config c = example();
  EXPECT_EQ(c.integer("n", {1, 10}), 8);
  EXPECT_EQ(c.number("eps", {0, 1}), 1e-5);
  EXPECT_EQ(c.number("n", {0, 10}), 8.0);
  EXPECT_TRUE(c.boolean("flag"));
  EXPECT_EQ(c.text("name"), "silu");
  EXPECT_EQ(c.text("name", {"gelu", "silu"}), "silu");
}

TEST(Config, key_paths_reach_into_objects) {
  const Config c = example();
  EXPECT_EQ(c.integer("ffn.top_k", {1, 8}), 2);
  EXPECT_EQ(c.integer("ffn.inner.x", {1, 8}), 3);
  EXPECT_EQ(c.child("ffn").integer("inner.x", {1, 8}), 3);
  EXPECT_EQ(c.child("ffn.inner").integer("x", {1, 8}), 3);
  EXPECT_EQ(c.integer("absent.x", {1, 8}, 5), 5);
  EXPECT_EQ(c.integer("nothing.x", {1, 8}, 5), 5);
}

TEST(Config, defaults_are_for_what_is_missing_or_null) {
  const Config c = example();
  EXPECT_EQ(c.integer("absent", {1, 8}, 5), 5);
  EXPECT_EQ(c.integer("nothing", {1, 8}, 5), 5);
  EXPECT_EQ(c.number("absent", {1, 8}, 0.5), 0.5);
  EXPECT_FALSE(c.boolean("absent", false));
  EXPECT_EQ(c.text("absent", {"a"}, "a"), "a");
  EXPECT_FALSE(c.has("absent"));
  EXPECT_FALSE(c.has("nothing"));
  EXPECT_TRUE(c.has("ffn.top_k"));
}

TEST(Config, nullable_values_tell_null_from_missing) {
  const Config c = example();
  EXPECT_TRUE(c.is_null("nothing"));
  EXPECT_TRUE(c.is_null("ffn.null_inside"));
  EXPECT_FALSE(c.is_null("absent"));
  EXPECT_EQ(c.nullable_integer("nothing", {1, 8}, 5), std::nullopt);
  EXPECT_EQ(c.nullable_integer("absent", {1, 8}, 5), 5);
  EXPECT_EQ(c.nullable_integer("absent", {1, 8}), std::nullopt);
  EXPECT_EQ(c.nullable_integer("n", {1, 8}, 5), 8);
  EXPECT_EQ(c.nullable_number("nothing", {0, 8}, 1.0), std::nullopt);
  EXPECT_EQ(c.nullable_number("absent", {0, 8}, 1.0), 1.0);
  EXPECT_EQ(c.nullable_number("eps", {0, 8}), 1e-5);
}

TEST(Config, lists_and_single_values_in_their_place) {
  const Config c = example();
  EXPECT_THAT(c.integers("ids", {0, 9}), ElementsAre(1, 2));
  EXPECT_THAT(c.integers("n", {0, 9}), ElementsAre(8));
  EXPECT_THAT(c.integers("nothing", {0, 9}), IsEmpty());
  EXPECT_THAT(c.numbers("factors", {0, 9}), ElementsAre(1.0, 2.5));
  EXPECT_THAT(c.texts("kinds"), ElementsAre("a", "b"));
  EXPECT_THAT(c.texts("name"), ElementsAre("silu"));
  EXPECT_THAT(test::message_of([&] { c.integers("ids", {0, 1}); }),
              AllOf(HasSubstr("ids is 2"), HasSubstr("from 0 to 1")));
  EXPECT_NE(test::message_of([&] { c.texts("ids"); }), "no error");
}

TEST(Config, E13_numbers_out_of_range_name_file_key_value_and_range) {
  const Config c = example();
  for (const char* key : {"zero", "negative", "huge"}) {
    EXPECT_THAT(test::message_of([&] { c.integer(key, {1, 1 << 20}); }),
                AllOf(HasSubstr("/m/config.json: " + std::string(key) + " is "),
                      HasSubstr("expected an integer from 1 to 1048576")));
  }
  EXPECT_THAT(test::message_of([&] { c.integer("beyond", {1, INT64_MAX}); }),
              HasSubstr("18446744073709551615"));
  EXPECT_THAT(test::message_of([&] { c.number("eps", {0.5, 1}); }),
              AllOf(HasSubstr("eps is 1E-5"), HasSubstr("expected a number from 0.5 to 1")));
  EXPECT_THAT(test::message_of([&] { c.integer("ffn.top_k", {3, 4}); }),
              HasSubstr("ffn.top_k is 2"));
  EXPECT_THAT(test::message_of([&] { c.child("ffn").integer("inner.x", {1, 2}); }),
              HasSubstr("ffn.inner.x is 3"));
  EXPECT_THAT(test::message_of([&] { c.child("ffn").child("inner").integer("x", {1, 2}); }),
              HasSubstr("ffn.inner.x is 3"));
}

TEST(Config, E13_other_types_are_refused) {
  const Config c = example();
  for (const char* key : {"one_point_oh", "flag", "name", "ids", "ffn"}) {
    EXPECT_THAT(test::message_of([&] { c.integer(key, {0, 9}); }), HasSubstr(key));
  }
  for (const char* key : {"flag", "name", "ids", "ffn"}) {
    EXPECT_THAT(test::message_of([&] { c.number(key, {0, 9}); }), HasSubstr(key));
  }
  EXPECT_THAT(test::message_of([&] { c.boolean("n"); }), HasSubstr("expected true or false"));
  EXPECT_THAT(test::message_of([&] { c.text("n"); }), HasSubstr("expected a string"));
  EXPECT_THAT(test::message_of([&] { c.child("n"); }), HasSubstr("expected an object"));
  EXPECT_THAT(test::message_of([&] { c.integer("n.x", {0, 9}); }), HasSubstr("expected an object"));
  EXPECT_NE(test::message_of([&] { c.nullable_integer("flag", {0, 9}); }), "no error");
}

TEST(Config, E13_missing_keys_say_what_was_expected) {
  const Config c = example();
  EXPECT_THAT(test::message_of([&] { c.integer("ffn.absent", {1, 9}); }),
              AllOf(HasSubstr("ffn.absent is missing"), HasSubstr("from 1 to 9")));
  EXPECT_THAT(test::message_of([&] { c.integer("nothing", {1, 9}); }),
              HasSubstr("nothing is missing"));
  EXPECT_THAT(test::message_of([&] { c.child("absent"); }), HasSubstr("absent is missing"));
}

TEST(Config, E13_unknown_texts_list_what_is_allowed) {
  EXPECT_THAT(test::message_of([&] { example().text("name", {"gelu", "relu"}); }),
              AllOf(HasSubstr("name is \"silu\""), HasSubstr("one of: gelu, relu")));
}

TEST(Config, refuse_names_the_file_and_the_whole_key) {
  EXPECT_EQ(test::message_of([&] { example().child("ffn").refuse("top_k", "is odd"); }),
            "/m/config.json: ffn.top_k is odd");
}

TEST(Config, an_empty_child_gives_defaults_and_full_names) {
  const Config child = example().child_or_empty("rope");
  EXPECT_EQ(child.number("factor", {0, 9}, 2.0), 2.0);
  EXPECT_THAT(test::message_of([&] { child.number("factor", {0, 9}); }),
              HasSubstr("rope.factor is missing"));
}

TEST(Config, what_is_not_an_object_is_refused) {
  EXPECT_THAT(test::message_of([] { Config::parse("[]", "x.json"); }), HasSubstr("x.json"));
  EXPECT_THAT(test::message_of([] { Config::parse(R"({"a":1,"a":2})", "x.json"); }),
              HasSubstr("twice"));
  EXPECT_THAT(test::message_of([] { Config::read("/absent/config.json"); }),
              HasSubstr("/absent/config.json"));
}

TEST(Config, a_long_value_is_shortened_in_the_message) {
  const Config c = Config::parse("{\"a\":\"" + std::string(5000, 'x') + "\"}", "x.json");
  EXPECT_LT(test::message_of([&] { c.integer("a", {0, 1}); }).size(), 300U);
}

}  // namespace
}  // namespace lorry
