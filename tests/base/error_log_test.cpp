#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/checked.h"
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"

namespace lorry {
namespace {

TEST(Log, control_bytes_are_escaped) {
  EXPECT_EQ(escape_control("a\r\nb\x1b[0m\x7f"), "a\\x0d\\x0ab\\x1b[0m\\x7f");
  EXPECT_EQ(escape_control(std::string("\0x", 2)), "\\x00x");
  EXPECT_EQ(escape_control("é 你好 \"\\"), "é 你好 \"\\");
}

TEST(Log, a_json_line_is_one_valid_json_value) {
  testing::internal::CaptureStderr();
  {
    Log log({.json = true});
    log.info("adapter {} is \"bad\" \\ {}", "x\ny", 100);
    log.debug("not {}", "shown");
  }
  const std::string line = testing::internal::GetCapturedStderr();
  ASSERT_EQ(line.find('\n'), line.size() - 1);
  const json::value value = parse_json(line, "line");
  EXPECT_EQ(value.at("message").as_string(), "adapter x\\x0ay is \"bad\" \\ 100");
  EXPECT_EQ(value.at("level").as_string(), "info");
}

TEST(Log, a_record_has_its_figures_as_members) {
  testing::internal::CaptureStderr();
  Log({.json = true})
      .record("re\"quest", {{"id", "a\nb\"c"}, {"tokens", int64_t{7}}, {"seconds", 0.5}});
  Log({.json = false}).record("request", {{"id", "a\nb"}, {"tokens", int64_t{7}}});
  Log({.level = LogLevel::warn}).record("unseen", {});
  const std::string lines = testing::internal::GetCapturedStderr();
  const json::value value = parse_json(lines.substr(0, lines.find('\n')), "line");
  EXPECT_EQ(value.at("message").as_string(), "re\"quest");
  EXPECT_EQ(value.at("id").as_string(), "a\\x0ab\"c");
  EXPECT_EQ(value.at("tokens").as_int64(), 7);
  EXPECT_EQ(value.at("seconds").as_double(), 0.5);
  EXPECT_NE(lines.find("request id=a\\x0ab tokens=7\n"), std::string::npos) << lines;
  EXPECT_EQ(lines.find("unseen"), std::string::npos);
}

TEST(Log, text_lines_below_the_level_are_not_written) {
  testing::internal::CaptureStderr();
  {
    Log log({.level = LogLevel::warn});
    log.info("quiet");
    log.error("loud\n{}", 1);
  }
  const std::string lines = testing::internal::GetCapturedStderr();
  EXPECT_EQ(lines.find("quiet"), std::string::npos);
  EXPECT_NE(lines.find("loud\\x0a1"), std::string::npos);
}

TEST(Error, quote_shortens_and_escapes) {
  EXPECT_EQ(quote("a\nb"), "\"a\\x0ab\"");
  EXPECT_EQ(quote("abcdef", 3), "\"abc...\"");
  EXPECT_EQ(quote("abé", 3), "\"ab...\"");
  EXPECT_EQ(quote("aé!", 3), "\"a...\"");
  EXPECT_EQ(quote("", 3), "\"\"");
}

TEST(Error, fail_formats_and_carries_the_code) {
  try {
    fail(Code::too_long, "{} > {}", 3, 2);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::too_long);
    EXPECT_STREQ(e.what(), "3 > 2");
  }
}

TEST(ErrorDeathTest, a_failed_check_prints_the_condition_and_the_values) {
  const int n = 3;
  EXPECT_DEATH(LORRY_CHECK(n == 4, "n = {}", n), "check failed: n == 4 n = 3");
  LORRY_CHECK(n == 3);
  LORRY_DCHECK(n == 3, "{}", n);
  LORRY_DCHECK(n == 3);
}

TEST(Checked, overflow_is_empty) {
  EXPECT_EQ(checked_mul(1LL << 31, 1LL << 31), 1LL << 62);
  EXPECT_EQ(checked_mul(1LL << 32, 1LL << 31), std::nullopt);
  EXPECT_EQ(checked_add(INT64_MAX, 0), INT64_MAX);
  EXPECT_EQ(checked_add(INT64_MAX, 1), std::nullopt);
  EXPECT_EQ(checked_add(INT64_MIN, -1), std::nullopt);
}

}  // namespace
}  // namespace lorry
