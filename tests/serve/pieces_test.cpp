// The parts of serving that need no server: JSON writing, stop filter, the table of fields, errors.
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "serve/errors.h"
#include "serve/fields.h"
#include "serve/json_writer.h"
#include "serve/stop_filter.h"

namespace lorry {
namespace {

using testing::HasSubstr;

TEST(JsonWriter, writes_what_a_strict_reader_reads) {
  JsonWriter json;
  json.begin_object().member("a", 1).member("b", "x\"\\\n\x01y").member("c", -0.1F);
  json.key("d").begin_array().value(true).null().value(1e300).end_array();
  json.key("e").begin_object().end_object().member("f", uint64_t{18446744073709551615U});
  const std::string text = json.end_object().take();
  EXPECT_EQ(text, R"({"a":1,"b":"x\"\\\n\u0001y","c":-0.1,"d":[true,null,1e+300],"e":{},)"
                  R"("f":18446744073709551615})");
  EXPECT_NO_THROW(parse_json(text, "it"));
}

TEST(JsonWriter, what_is_no_number_is_null_and_what_is_no_text_is_replaced) {
  JsonWriter json;
  json.begin_array().value(std::numeric_limits<float>::quiet_NaN());
  json.value(-std::numeric_limits<double>::infinity()).value("a\xc3(\xed\xa0\x80\xf0\x9f\x99\x82");
  EXPECT_EQ(json.end_array().take(),
            "[null,null,\"a\xEF\xBF\xBD(\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD🙂\"]");
}

// What comes out when `text` arrives in pieces of n bytes.
std::string filtered(const std::string& text, size_t n, const std::vector<std::string>& stops,
                     bool* stopped) {
  StopFilter filter(stops);
  std::string out;
  for (size_t i = 0; i < text.size(); i += n) out += filter.push(text.substr(i, n));
  out += filter.finish();
  *stopped = filter.stopped();
  return out;
}

TEST(StopFilter, cuts_before_the_first_stop_whatever_the_pieces) {
  const std::vector<std::string> stops = {"aab", "zz", "abc"};
  for (const std::string text : {"xaaab", "aaaaaa", "xyz", "abab", "q zz abc", "ab", "aabc", "z"}) {
    size_t at = std::string::npos;
    for (const std::string& stop : stops) at = std::min(at, text.find(stop));
    for (size_t n = 1; n <= text.size(); ++n) {
      bool stopped = false;
      // Pieces of any size: the earliest stop to be complete ends the text.
      const std::string out = filtered(text, n, stops, &stopped);
      EXPECT_EQ(stopped, at != std::string::npos) << text << n;
      EXPECT_EQ(out, text.substr(0, at)) << text << n;
    }
  }
}

TEST(StopFilter, holds_back_only_what_may_be_a_beginning) {
  StopFilter filter({"STOP"});
  EXPECT_EQ(filter.push("go ST"), "go ");
  EXPECT_EQ(filter.push("ART"), "START");
  EXPECT_EQ(filter.push("S"), "");
  EXPECT_EQ(filter.finish(), "S");
}

TEST(Fields, every_rule_has_its_own_name_in_its_dialect) {
  std::set<std::pair<std::string_view, unsigned>> seen;
  for (const FieldRule& rule : field_table()) {
    for (const Api api : {Api::lorax, Api::chat, Api::completions}) {
      const unsigned bit = static_cast<unsigned>(api);
      if ((rule.apis & bit) == 0) continue;
      EXPECT_TRUE(seen.insert({rule.name, bit}).second) << rule.name;
    }
  }
}

TEST(Fields, a_value_of_the_wrong_kind_is_refused_by_every_rule) {
  Limits limits;
  limits.vocab = 100;
  for (const FieldRule& rule : field_table()) {
    if (std::holds_alternative<ReadElsewhere>(rule.target)) continue;
    for (const Api api : {Api::lorax, Api::chat, Api::completions}) {
      if ((rule.apis & static_cast<unsigned>(api)) == 0) continue;
      json::object body;
      // No field takes a list of lists; a flag or number no list at all.
      body[std::string(rule.name)] = json::array{json::array{json::object{}}};
      std::vector<std::string> unknown;
      try {
        read_fields(body, api, limits, &unknown);
        ADD_FAILURE() << rule.name << " was accepted";
      } catch (const RequestError& e) {
        EXPECT_TRUE(std::string(e.what()).find("`") != std::string::npos ||
                    std::string(e.what()).find("adapter") != std::string::npos)
            << e.what();
        EXPECT_EQ(e.param(), rule.name);
      }
      body[std::string(rule.name)] = nullptr;
      EXPECT_NO_THROW(read_fields(body, api, limits, &unknown)) << rule.name;
    }
  }
}

TEST(Errors, every_problem_has_words_in_both_dialects) {
  for (int i = 0; i <= static_cast<int>(Problem::failed); ++i) {
    const ApiError error{static_cast<Problem>(i), "words", ""};
    for (const Dialect dialect : {Dialect::lorax, Dialect::openai}) {
      const HttpResponse response = error_response(error, dialect);
      EXPECT_GE(response.status, 400);
      EXPECT_THAT(response.body, HasSubstr("words"));
      EXPECT_NO_THROW(parse_json(response.body, "it"));
    }
  }
}

TEST(Errors, codes_mean_by_the_stage_they_come_from) {
  const auto problem = [](Code code, Stage stage) {
    return to_api_error(Error(code, "x"), stage).problem;
  };
  EXPECT_EQ(problem(Code::bad_file, Stage::parsing), Problem::bad_json);
  EXPECT_EQ(problem(Code::bad_file, Stage::generating), Problem::bad_adapter);
  EXPECT_EQ(problem(Code::not_found, Stage::generating), Problem::unknown_adapter);
  EXPECT_EQ(problem(Code::invalid_argument, Stage::rendering), Problem::chat_template);
  EXPECT_EQ(problem(Code::over_capacity, Stage::parsing), Problem::overloaded);
  EXPECT_EQ(problem(Code::unavailable, Stage::parsing), Problem::unavailable);
  // An adapter that the hub does not give, or that is too large.
  EXPECT_EQ(problem(Code::unavailable, Stage::generating), Problem::bad_adapter);
  EXPECT_EQ(problem(Code::over_capacity, Stage::generating), Problem::bad_adapter);
  EXPECT_EQ(problem(Code::internal, Stage::generating), Problem::failed);
  EXPECT_EQ(to_api_error(std::runtime_error("x"), Stage::parsing).problem, Problem::failed);
}

TEST(Errors, the_http_layers_refusals_keep_their_status) {
  for (const int status : {400, 408, 413, 414, 415, 417, 431, 503}) {
    EXPECT_EQ(http_refusal(status, "no", "/generate").status, status);
    EXPECT_EQ(http_refusal(status, "no", "/v1/models").status, status);
  }
}

}  // namespace
}  // namespace lorry
