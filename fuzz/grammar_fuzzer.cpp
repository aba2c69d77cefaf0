// A schema, a regular expression or a grammar of a client, and an answer that it may allow.
// Input: a line json_schema, regex or lark; the grammar; behind a line "---" the answer.
#include "fuzz.h"
#include "text/constraint.h"

namespace {

using namespace lorry;  // NOLINT

constexpr size_t kMostTokens = 64;  // of the answer

// Says the text as far as the grammar allows, then whatever it allows first.
void follow(const Tokenizer& tokenizer, const Grammar& grammar, std::string_view text) {
  std::vector<int32_t> ids;
  fuzz::may_refuse([&] { ids = tokenizer.encode(text, {.add_special = false}); });
  Constraint constraint(grammar);
  std::vector<uint32_t> words((static_cast<size_t>(tokenizer.vocab_size()) + 31) / 32);
  const auto allowed = [&](int32_t id) {
    return (words[static_cast<size_t>(id) / 32] >> (id % 32) & 1) != 0;
  };
  for (size_t i = 0; i < kMostTokens && !constraint.finished(); ++i) {
    constraint.mask(words);
    int32_t next = i < ids.size() ? ids[i] : 0;
    while (next < tokenizer.vocab_size() && !allowed(next)) ++next;
    if (next == tokenizer.vocab_size()) break;  // a dead end
    const bool ends = next == tokenizer.eos_ids().front();
    constraint.commit(next);
    if (ends) break;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Tokenizer tokenizer = Tokenizer::load(LORRY_SOURCE_DIR "/demo/mixtral");
  const auto parts = fuzz::split(fuzz::text_of(data, size), 2);
  const std::string_view kind = parts[0].substr(0, parts[0].find('\n'));
  const std::string_view text = parts[0].substr(std::min(kind.size() + 1, parts[0].size()));
  fuzz::may_refuse([&] {
    const Grammar grammar(tokenizer,
                          kind == "regex"  ? GrammarKind::regex
                          : kind == "lark" ? GrammarKind::lark
                                           : GrammarKind::json_schema,
                          text);
    follow(tokenizer, grammar, parts[1]);
  });
  return 0;
}
