#include "text/constraint.h"

#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/edited_model.h"
#include "text/golden.h"

namespace lorry {
namespace {

std::vector<int32_t> allowed(Constraint& constraint, const Tokenizer& tokenizer) {
  // One word more than needed, set before: it must come back cleared.
  std::vector<uint32_t> words(static_cast<size_t>(tokenizer.vocab_size()) / 32 + 2, 0xFFFFFFFFu);
  constraint.mask(words);
  EXPECT_EQ(words.back(), 0u);
  std::vector<int32_t> ids;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const auto i = static_cast<uint32_t>(id);
    if ((words[i / 32] >> (i % 32) & 1) != 0) ids.push_back(id);
  }
  return ids;
}

// Commits allowed tokens at random until nothing can follow, and gives the text.
std::string random_output(Constraint& constraint, const Tokenizer& tokenizer, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids;
  for (int step = 0; step < 2000 && !constraint.finished(); ++step) {
    std::vector<int32_t> next = allowed(constraint, tokenizer);
    if (next.empty()) {
      ADD_FAILURE() << "no token is allowed after " << tokenizer.decode(ids);
      break;
    }
    int32_t id = next[random() % next.size()];
    // Once the output may end, end it: random strings would go on for ever.
    if (constraint.accepting()) id = tokenizer.eos_ids().front();
    constraint.commit(id);
    if (id != tokenizer.eos_ids().front()) ids.push_back(id);
  }
  EXPECT_TRUE(constraint.finished());
  std::string text;
  for (int32_t id : ids) text += tokenizer.bytes(id);
  return text;
}

const char kSchema[] = R"({
  "type": "object",
  "properties": {"name": {"enum": ["ada", "bo"]}, "age": {"type": "integer", "maximum": 99, "minimum": 0},
                 "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}},
  "required": ["name", "age", "tags"], "additionalProperties": false})";

TEST(Constraint, RandomWalksGiveJsonOfTheSchema) {
  for (const std::string& name : golden::cases()) {
    SCOPED_TRACE(name);
    Tokenizer tokenizer = golden::load(name);
    for (uint32_t seed = 0; seed < 20; ++seed) {
      Constraint constraint(Grammar(tokenizer, GrammarKind::json_schema, kSchema));
      std::string text = random_output(constraint, tokenizer, seed);
      SCOPED_TRACE(text);
      json::object object = parse_json(text, "output").as_object();
      EXPECT_TRUE(object.at("name") == "ada" || object.at("name") == "bo");
      EXPECT_TRUE(object.at("age").is_int64() && object.at("age").as_int64() <= 99);
      EXPECT_LE(object.at("tags").as_array().size(), 2u);
      EXPECT_EQ(object.size(), 3u);
    }
  }
}

TEST(Constraint, TheFirstMaskOfAnObjectIsItsBrace) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  Constraint constraint(Grammar(tokenizer, GrammarKind::json_schema, kSchema));
  for (int32_t id : allowed(constraint, tokenizer)) EXPECT_EQ(tokenizer.bytes(id).front(), '{');
  EXPECT_FALSE(constraint.accepting());
  EXPECT_FALSE(constraint.finished());
}

TEST(Constraint, RegexAndLark) {
  Tokenizer tokenizer = golden::load("mixtral-sliding");
  for (uint32_t seed = 0; seed < 20; ++seed) {
    Constraint regex(Grammar(tokenizer, GrammarKind::regex, "(expert|token) [0-9]{3}é"));
    std::string text = random_output(regex, tokenizer, seed);
    EXPECT_TRUE(text.starts_with("expert ") || text.starts_with("token ")) << text;
    EXPECT_TRUE(text.ends_with("é")) << text;
    Constraint lark(Grammar(tokenizer, GrammarKind::lark, "start: \"a\" start \"b\" | \"c\""));
    text = random_output(lark, tokenizer, seed);
    EXPECT_EQ(text.size() % 2, 1u);
    EXPECT_EQ(text[text.size() / 2], 'c') << text;
  }
}

TEST(Constraint, EosIsAllowedExactlyWhenAccepting) {
  golden::EditedModel model("dbrx-base");
  model.edit("generation_config.json", [](json::object& c) { c["eos_token_id"] = {2, 4}; });
  Tokenizer tokenizer = Tokenizer::load(model.path());
  Constraint constraint(Grammar(tokenizer, GrammarKind::regex, "ab?"));
  auto has = [&](int32_t id) {
    std::vector<int32_t> ids = allowed(constraint, tokenizer);
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  EXPECT_FALSE(has(2) || has(4));
  constraint.commit(*tokenizer.id_of("a"));
  EXPECT_TRUE(constraint.accepting());
  EXPECT_FALSE(constraint.finished());
  EXPECT_TRUE(has(2) && has(4));
  constraint.commit(4);
  EXPECT_TRUE(constraint.finished());
}

TEST(Constraint, ATokenOutsideOfTheMaskIsRefused) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  for (int32_t id : {*tokenizer.id_of("x"), 3, 100000, -1}) {
    Constraint constraint(Grammar(tokenizer, GrammarKind::regex, "ab"));
    EXPECT_THROW(constraint.commit(id), Error) << id;
    std::vector<uint32_t> words(10);
    EXPECT_THROW(constraint.mask(words), Error) << id;
  }
}

// Two sequences of one request do not share a state.
TEST(Constraint, ConstraintsAreIndependent) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  Constraint one(Grammar(tokenizer, GrammarKind::regex, "ab"));
  Constraint two(Grammar(tokenizer, GrammarKind::regex, "ab"));
  one.commit(*tokenizer.id_of("a"));
  EXPECT_EQ(allowed(one, tokenizer), std::vector<int32_t>{*tokenizer.id_of("b")});
  EXPECT_NE(allowed(two, tokenizer), std::vector<int32_t>{*tokenizer.id_of("b")});
}

// Many sequences of one grammar, on several threads: each sees what it would see alone.
TEST(Constraint, CopiesOfAGrammarAreIndependentOnManyThreads) {
  Tokenizer tokenizer = golden::load("mixtral-sliding");
  const Grammar grammar(tokenizer, GrammarKind::json_schema, kSchema);
  EXPECT_GT(grammar.bytes(), sizeof(kSchema));
  std::vector<std::string> alone;
  for (uint32_t seed = 0; seed < 16; ++seed) {
    Constraint fresh(Grammar(tokenizer, GrammarKind::json_schema, kSchema));
    alone.push_back(random_output(fresh, tokenizer, seed));
  }
  std::vector<std::string> together(alone.size());
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < together.size(); i += 4) {
        Constraint own(grammar);
        together[i] = random_output(own, tokenizer, static_cast<uint32_t>(i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(together, alone);
}

// The form of tool calls: a special token, then JSON.
TEST(Constraint, ATokenBeforeJson) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  Constraint constraint(
      Grammar(tokenizer, GrammarKind::lark,
              "start: <[3]> / ?/ calls\ncalls: %json {\"type\": \"array\", \"items\": {\"$ref\": "
              "\"#/$defs/t/$defs/u\"}, \"minItems\": 1, \"$defs\": {\"t\": {\"$defs\": {\"u\": "
              "{\"type\": \"boolean\"}}}}, \"x-guidance\": {\"whitespace_flexible\": false, "
              "\"item_separator\": \", \", \"key_separator\": \": \"}}\n"));
  EXPECT_EQ(allowed(constraint, tokenizer), std::vector<int32_t>{3});
  constraint.commit(3);
  EncodeOptions plain;
  plain.add_special = false;
  for (const int32_t id : tokenizer.encode("[true, false]", plain)) constraint.commit(id);
  EXPECT_TRUE(constraint.accepting());
  Constraint other(Grammar(tokenizer, GrammarKind::lark, "start: <[3]> \"x\""));
  EXPECT_THROW(other.commit(4), Error);
}

TEST(Constraint, BlanksBetweenThePartsOfJsonAreBounded) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  Constraint constraint(Grammar(tokenizer, GrammarKind::json_schema, kSchema));
  EncodeOptions plain;
  plain.add_special = false;
  for (const int32_t id : tokenizer.encode("{\n  ", plain)) constraint.commit(id);
  const auto blank_fits = [&] {
    for (const int32_t id : allowed(constraint, tokenizer)) {
      if (tokenizer.bytes(id).find_first_not_of(" \n\t\r") != std::string_view::npos) continue;
      constraint.commit(id);
      return true;
    }
    return false;
  };
  int n = 0;
  while (n < 100 && blank_fits()) ++n;
  EXPECT_GT(n, 2);
  EXPECT_LT(n, 30);
}

// A parser of regular expressions prints the lines around a mistake. The one name that is wrong may
// be told.
TEST(Constraint, RefusalsDoNotRepeatTheGrammar) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  const std::pair<GrammarKind, std::string> cases[] = {
      {GrammarKind::regex, "secretword|a("},
      {GrammarKind::regex, "secretword[b-a]"},
      {GrammarKind::lark, "start: \"secretword\" ~"},
      {GrammarKind::lark, "start: \"secretword\" gone"},
      {GrammarKind::lark, "gone: \"secretword\""},
      {GrammarKind::json_schema, "secretword"},
      {GrammarKind::json_schema, R"({"const": "secretword", "type": "hiccup"})"},
      {GrammarKind::json_schema, R"({"type": "string", "pattern": "secretword("})"},
      {GrammarKind::json_schema, R"({"title": "secretword", "$ref": "#/$defs/gone"})"}};
  for (const auto& [kind, text] : cases) {
    try {
      const Grammar grammar(tokenizer, kind, text);
      ADD_FAILURE() << "accepted: " << text;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find("secretword"), std::string::npos) << message;
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      EXPECT_LT(message.size(), 300U) << message;
    }
  }
}

// D1, D2
TEST(Constraint, BadAndHostileGrammarsAreRefused) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  const std::string many(100000, '(');
  std::string deep_schema;
  for (int i = 0; i < 120; ++i) deep_schema += R"({"type":"array","items":)";
  std::string wide = "start: ";
  for (int i = 0; i < 30000; ++i) wide += "!";
  struct {
    GrammarKind kind;
    std::string text;
  } cases[] = {{GrammarKind::json_schema, "{\"type\": 5}"},
               {GrammarKind::json_schema, "{\"type\": "},
               {GrammarKind::json_schema, "not json"},
               {GrammarKind::json_schema, "{\"$ref\": \"http://other.example/schema\"}"},
               {GrammarKind::json_schema, deep_schema},
               {GrammarKind::json_schema, std::string(2 << 20, ' ') + "{}"},
               {GrammarKind::regex, "a("},
               {GrammarKind::regex, many},
               {GrammarKind::regex, "\xff"},
               {GrammarKind::lark, "start: nothing"},
               {GrammarKind::lark, "start: " + many},
               {GrammarKind::lark, wide},
               {GrammarKind::lark, ""}};
  for (const auto& entry : cases) {
    SCOPED_TRACE(entry.text.substr(0, 60));
    try {
      Constraint constraint(Grammar(tokenizer, entry.kind, entry.text));
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument) << error.what();
      EXPECT_LT(std::string(error.what()).size(), 2000u);
    }
  }
}

// Compiled lazily, so it is the masks that must stay within their limits.
TEST(Constraint, HugeRepeatsAreRefusedOrBounded) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  for (std::string regex :
       {"((a{1,1000}){1,1000}){1,1000}", "(a?){1,1000000}", "(a|b|ab)*c{1000000}"}) {
    SCOPED_TRACE(regex);
    try {
      Constraint constraint(Grammar(tokenizer, GrammarKind::regex, regex));
      for (int i = 0; i < 20; ++i) {
        ASSERT_FALSE(allowed(constraint, tokenizer).empty());
        constraint.commit(*tokenizer.id_of("a"));
      }
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
    }
  }
}

TEST(Constraint, ARecursiveSchemaIsFine) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  Constraint constraint(Grammar(tokenizer, GrammarKind::json_schema,
                                R"({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object",
                            "properties": {"next": {"$ref": "#/$defs/tree"}},
                            "additionalProperties": false}}})"));
  EXPECT_FALSE(allowed(constraint, tokenizer).empty());
}

}  // namespace
}  // namespace lorry
