#include "text/tokenizer.h"

#include <algorithm>
#include <thread>

#include <gtest/gtest.h>

#include "base/error.h"
#include "text/edited_model.h"
#include "text/golden.h"
#include "text/stream_decoder.h"

namespace lorry {
namespace {

using golden::EditedModel;

Code code_of(const std::function<void()>& action, std::string* message = nullptr) {
  try {
    action();
  } catch (const Error& error) {
    if (message != nullptr) *message = error.what();
    return error.code();
  }
  ADD_FAILURE() << "nothing was thrown";
  return Code::internal;
}

EncodeOptions plain() { return {.add_special = false, .allow_special = false, .breaks = {}}; }

TEST(Tokenizer, EncodesAndDecodesAsTheReference) {
  for (const std::string& name : golden::cases()) {
    SCOPED_TRACE(name);
    Tokenizer tokenizer = golden::load(name);
    json::object expected = golden::expected(name);
    EXPECT_EQ(tokenizer.vocab_size(), expected.at("vocab_size").to_number<int32_t>());
    const json::array& encodings = expected.at("encodings").as_array();
    ASSERT_GE(encodings.size(), 7u);
    for (const json::value& entry : encodings) {
      const json::object& encoding = entry.as_object();
      std::string text = golden::text(encoding.at("text"));
      SCOPED_TRACE(text);
      std::vector<int32_t> ids = tokenizer.encode(text);
      EXPECT_EQ(ids, golden::ids(encoding.at("ids")));
      EXPECT_EQ(tokenizer.encode(text, {.add_special = false}),
                golden::ids(encoding.at("ids_without_special")));
      EXPECT_EQ(tokenizer.decode(ids, false), golden::text(encoding.at("decoded")));
      EXPECT_EQ(tokenizer.decode(ids, true), golden::text(encoding.at("decoded_skip_special")));
    }
  }
}

TEST(Tokenizer, GivesTheSameIdsEachTimeAndOnEachThread) {
  Tokenizer tokenizer = golden::load("mixtral-base");
  const std::string text = "the expert routes 漢字 <s> token";
  const std::vector<int32_t> first = tokenizer.encode(text);
  EXPECT_EQ(first.front(), tokenizer.bos_id());
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) count += tokenizer.encode(text) == first ? 0 : 1;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(Tokenizer, KnowsItsTokens) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_ids(), std::vector<int32_t>{2});
  EXPECT_EQ(tokenizer.piece(3), "<|im_start|>");
  EXPECT_TRUE(tokenizer.is_special(3));
  EXPECT_FALSE(tokenizer.is_special(44));
  EXPECT_EQ(tokenizer.id_of("<|im_end|>"), 4);
  EXPECT_FALSE(tokenizer.id_of("no such token"));
  for (int32_t id : {-1, INT32_MIN, INT32_MAX, tokenizer.vocab_size()}) {
    EXPECT_FALSE(tokenizer.contains(id));
    EXPECT_FALSE(tokenizer.is_special(id));
    EXPECT_EQ(tokenizer.piece(id), "");
    EXPECT_EQ(tokenizer.decode({&id, 1}), "");
  }
  EXPECT_EQ(tokenizer.longest_token_bytes(), std::string("<|im_start|>").size());
}

// Both kinds of vocabulary: the bytes of all tokens, put together, are the text.
TEST(Tokenizer, BytesOfTokensAreTheText) {
  for (const std::string& name : golden::cases()) {
    SCOPED_TRACE(name);
    Tokenizer tokenizer = golden::load(name);
    const std::string text = "naïve  — 漢字 🙂\n\tx";
    std::string bytes;
    for (int32_t id : tokenizer.encode(text, {.add_special = false})) bytes += tokenizer.bytes(id);
    if (name == "mixtral-sliding") bytes.erase(0, 1);  // SentencePiece puts a space in front
    EXPECT_EQ(bytes, text);
  }
}

TEST(Tokenizer, SpansCountCharacters) {
  Tokenizer tokenizer = golden::load("mixtral-base");
  std::vector<TokenSpan> spans = tokenizer.encode_spans("é🙂 the");
  ASSERT_GE(spans.size(), 3u);
  EXPECT_EQ(spans.front().id, 1);
  EXPECT_EQ(spans.front().start, spans.front().stop);
  EXPECT_EQ(spans[1].start, 0);
  EXPECT_EQ(spans[1].stop, 1);
  EXPECT_EQ(spans.back().stop, 6);
}

TEST(Tokenizer, SpecialTokensInTextAreOrdinaryWhereNotAllowed) {
  for (const std::string& name : golden::cases()) {
    SCOPED_TRACE(name);
    Tokenizer tokenizer = golden::load(name);
    for (std::string text : {"<s>literal</s> markers", "<s><s></s>", "a <unk>", "</s>"}) {
      std::vector<int32_t> ids = tokenizer.encode(text, plain());
      for (int32_t id : ids) EXPECT_FALSE(tokenizer.is_special(id)) << text << " " << id;
      EXPECT_EQ(tokenizer.decode(ids, false), text);
    }
  }
}

TEST(Tokenizer, BreaksKeepSingleOccurrencesOrdinary) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  auto specials = [&](std::vector<size_t> breaks) {
    EncodeOptions options;
    options.breaks = breaks;
    std::vector<int32_t> found;
    for (int32_t id : tokenizer.encode("<s>a</s>b<s>", options)) {
      if (tokenizer.is_special(id)) found.push_back(id);
    }
    return found;
  };
  EXPECT_EQ(specials({}), (std::vector<int32_t>{1, 2, 1}));
  EXPECT_EQ(specials({0}), (std::vector<int32_t>{2, 1}));
  EXPECT_EQ(specials({2, 5}), (std::vector<int32_t>{1}));
  EXPECT_EQ(specials({3, 8}), (std::vector<int32_t>{1, 2, 1}));
  EXPECT_EQ(specials({9, 1000}), (std::vector<int32_t>{1, 2}));
}

// Newer SentencePiece files: only the start of the text gets a space, not each part after a token.
// Ids and texts are those of HF tokenizers 0.23.3 in Python for the same edited file.
TEST(Tokenizer, MetaspaceAtTheFirstPartOnly) {
  EditedModel model("mixtral-sliding");
  model.edit("tokenizer.json", [](json::object& tokenizer) {
    tokenizer["normalizer"] = nullptr;
    tokenizer["pre_tokenizer"] = tokenizer["decoder"] = json::object{
        {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}, {"split", false}};
  });
  Tokenizer tokenizer = Tokenizer::load(model.path());
  const EncodeOptions bare{.add_special = false};
  const std::vector<int32_t> ids = tokenizer.encode("the <s> token</s>the", bare);
  EXPECT_EQ(ids, (std::vector<int32_t>{312, 284, 281, 301, 1, 321, 286, 313, 2, 295, 284, 281}));
  EXPECT_EQ(tokenizer.decode(ids, false), "the <s> token</s>the");
  EXPECT_EQ(tokenizer.decode(ids, true), "the  tokenthe");
  EXPECT_EQ(tokenizer.encode("<s>the token", bare),
            (std::vector<int32_t>{1, 295, 284, 281, 321, 286, 313}));
  EXPECT_EQ(tokenizer.encode(" the", bare), (std::vector<int32_t>{312, 284, 281}));
  StreamDecoder stream(tokenizer);
  std::string text;
  for (int32_t id : ids) text += stream.push(id);
  EXPECT_EQ(text + stream.finish(), "the  tokenthe");
}

TEST(Tokenizer, AddedTokensThatAreNotSpecialStayTokens) {
  EditedModel model("dbrx-base");
  model.add_token("<tool_call>", false);
  model.add_token("[/INST]", true);
  Tokenizer tokenizer = Tokenizer::load(model.path());
  int32_t tool = *tokenizer.id_of("<tool_call>");
  int32_t inst = *tokenizer.id_of("[/INST]");
  EXPECT_EQ(tokenizer.encode("<tool_call>[/INST]"), (std::vector<int32_t>{tool, inst}));
  std::vector<int32_t> ids = tokenizer.encode("<tool_call>[/INST]", plain());
  EXPECT_EQ(ids.front(), tool);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), inst), 0);
}

TEST(Tokenizer, LongAndHostileTextIsEncoded) {
  const size_t million = 1000000;
  for (const std::string& name : {std::string("dbrx-base"), std::string("mixtral-sliding")}) {
    SCOPED_TRACE(name);
    Tokenizer tokenizer = golden::load(name);
    for (char c : {'a', '_', '^', ' '}) {
      std::string text(million, c);
      std::vector<int32_t> ids = tokenizer.encode(text, {.add_special = false});
      EXPECT_EQ(tokenizer.decode(ids, false), text) << c;
      EXPECT_GE(ids.size() * tokenizer.longest_token_bytes(), million);
    }
    std::string markers;
    for (int i = 0; i < 50000; ++i) markers += "<s></s>";
    EXPECT_EQ(tokenizer.encode(markers, {.add_special = false}).size(), 100000u);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(markers, plain()), false), markers);
  }
}

TEST(Tokenizer, HostileRegexInTheFileIsBounded) {
  EditedModel model("dbrx-base");
  model.edit("tokenizer.json", [](json::object& tokenizer) {
    json::array& parts = tokenizer.at("pre_tokenizer").as_object().at("pretokenizers").as_array();
    parts[0].as_object()["pattern"] = json::object{{"Regex", "(a+)+(?=c)"}};
  });
  Tokenizer tokenizer = Tokenizer::load(model.path());
  std::string text(5000, 'a');
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  Tokenizer tokenizer = golden::load("mixtral-base");
  for (std::string text : {"\xff", "a\xc3", "\xed\xa0\x80"}) {
    EXPECT_EQ(code_of([&] { tokenizer.encode(text); }), Code::invalid_argument);
  }
}

TEST(Tokenizer, TruncationAndPaddingInTheFileAreDropped) {
  EditedModel model("mixtral-base");
  model.edit("tokenizer.json", [](json::object& tokenizer) {
    tokenizer["truncation"] = json::object{
        {"direction", "Right"}, {"max_length", 4}, {"strategy", "LongestFirst"}, {"stride", 0}};
    tokenizer["padding"] = json::object{{"strategy", json::object{{"Fixed", 64}}},
                                        {"direction", "Right"},
                                        {"pad_to_multiple_of", nullptr},
                                        {"pad_id", 0},
                                        {"pad_type_id", 0},
                                        {"pad_token", "<unk>"}};
  });
  EXPECT_EQ(Tokenizer::load(model.path()).encode("Hello world"),
            golden::load("mixtral-base").encode("Hello world"));
}

TEST(Tokenizer, RefusesFoldersThatDoNotFit) {
  EXPECT_EQ(code_of([] { Tokenizer::load("/no/such/folder"); }), Code::not_found);
  std::string message;
  {
    EditedModel model("dbrx-base");
    model.write("tokenizer.json", "{\"version\": ");
    EXPECT_EQ(code_of([&] { Tokenizer::load(model.path()); }, &message), Code::bad_file);
    EXPECT_NE(message.find("tokenizer.json"), std::string::npos) << message;
  }
  {
    EditedModel model("dbrx-base");  // has no post-processor
    model.edit("tokenizer_config.json", [](json::object& c) { c["add_bos_token"] = true; });
    EXPECT_EQ(code_of([&] { Tokenizer::load(model.path()); }, &message), Code::bad_file);
    EXPECT_NE(message.find("add_bos_token"), std::string::npos) << message;
  }
  {
    EditedModel model("mixtral-base");
    model.edit("tokenizer_config.json", [](json::object& c) { c["bos_token"] = "<nothing>"; });
    EXPECT_EQ(code_of([&] { Tokenizer::load(model.path()); }), Code::bad_file);
  }
  {
    EditedModel model("mixtral-base");
    model.edit("generation_config.json", [](json::object& c) { c["eos_token_id"] = {2, 9999}; });
    EXPECT_EQ(code_of([&] { Tokenizer::load(model.path()); }), Code::bad_file);
  }
}

TEST(Tokenizer, ReadsSeveralEosIds) {
  EditedModel model("dbrx-base");
  model.edit("generation_config.json", [](json::object& c) { c["eos_token_id"] = {2, 4}; });
  EXPECT_EQ(Tokenizer::load(model.path()).eos_ids(), (std::vector<int32_t>{2, 4}));
}

}  // namespace
}  // namespace lorry
