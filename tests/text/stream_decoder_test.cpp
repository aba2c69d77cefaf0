#include "text/stream_decoder.h"

#include <random>

#include <gtest/gtest.h>

#include "text/golden.h"

namespace lorry {
namespace {

bool is_utf8(const std::string& text) {
  json::string quoted(text);
  std::string document = "\"";
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\') continue;
    document += c;
  }
  document += '"';
  try {
    parse_json(document, "a piece of a stream");
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  StreamDecoder decoder(tokenizer, skip);
  std::string all;
  for (int32_t id : ids) {
    std::string piece = decoder.push(id);
    EXPECT_TRUE(is_utf8(piece));
    all += piece;
  }
  const std::string coming = decoder.rest();
  std::string rest = decoder.finish();
  EXPECT_EQ(coming, rest);
  EXPECT_TRUE(is_utf8(rest));
  return all + rest;
}

TEST(StreamDecoder, TheCheckOfUtf8SeesBrokenText) {
  EXPECT_TRUE(is_utf8("é🙂\n\""));
  EXPECT_FALSE(is_utf8("\xc3"));
  EXPECT_FALSE(is_utf8("a\x9f\x99"));
}

TEST(StreamDecoder, PiecesOfRandomIdsAreTheDecodedText) {
  for (const std::string& name : golden::cases()) {
    SCOPED_TRACE(name);
    Tokenizer tokenizer = golden::load(name);
    std::mt19937 random(7);
    std::uniform_int_distribution<int32_t> any(-1, tokenizer.vocab_size());
    std::uniform_int_distribution<size_t> length(0, 60);
    for (int round = 0; round < 3000; ++round) {
      std::vector<int32_t> ids(length(random));
      for (int32_t& id : ids) id = any(random);
      const bool skip = round % 2 == 0;
      ASSERT_EQ(stream(tokenizer, ids, skip), tokenizer.decode(ids, skip)) << "round " << round;
    }
  }
}

TEST(StreamDecoder, PiecesOfEncodedTextAreTheText) {
  const std::string text = "  the naïve — 漢字 🙂🙂 x\n 日本 ";
  for (const std::string& name : golden::cases()) {
    SCOPED_TRACE(name);
    Tokenizer tokenizer = golden::load(name);
    EXPECT_EQ(stream(tokenizer, tokenizer.encode(text), true), text);
  }
}

TEST(StreamDecoder, AnEmojiComesWhole) {
  Tokenizer tokenizer = golden::load("dbrx-base");
  std::vector<int32_t> ids = tokenizer.encode("🙂");
  ASSERT_GT(ids.size(), 1u);
  StreamDecoder decoder(tokenizer);
  for (size_t i = 0; i + 1 < ids.size(); ++i) EXPECT_EQ(decoder.push(ids[i]), "");
  EXPECT_EQ(decoder.push(ids.back()), "🙂");
  EXPECT_EQ(decoder.finish(), "");
}

TEST(StreamDecoder, ACutCharacterIsReplacedAtTheEndOnly) {
  for (const std::string& name : {std::string("dbrx-base"), std::string("mixtral-sliding")}) {
    SCOPED_TRACE(name);
    Tokenizer tokenizer = golden::load(name);
    std::vector<int32_t> ids = tokenizer.encode("a🙂");
    ids.pop_back();
    StreamDecoder decoder(tokenizer);
    std::string text;
    for (int32_t id : ids) text += decoder.push(id);
    EXPECT_EQ(text, "a");
    const std::string rest = decoder.finish();
    EXPECT_EQ(text + rest, tokenizer.decode(ids));
    EXPECT_EQ(rest.substr(0, 3), "\xEF\xBF\xBD");
  }
}

// A forced byte token costs the same at each step, however long the run.
TEST(StreamDecoder, ALongRunOfBrokenBytesIsTextAtOnceOrAtTheEnd) {
  Tokenizer levels = golden::load("dbrx-base");
  int32_t broken = -1;
  for (int32_t id = 0; id < levels.vocab_size(); ++id) {
    if (levels.bytes(id) == "\xff") broken = id;
  }
  ASSERT_GE(broken, 0);
  StreamDecoder decoder(levels);
  for (int i = 0; i < 20000; ++i) ASSERT_EQ(decoder.push(broken), "\xEF\xBF\xBD");

  Tokenizer fallback = golden::load("mixtral-sliding");
  int32_t byte = *fallback.id_of("<0xFF>");
  std::vector<int32_t> ids(20000, byte);
  EXPECT_EQ(stream(fallback, ids, true), fallback.decode(ids));
}

}  // namespace
}  // namespace lorry
