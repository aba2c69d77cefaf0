// Turns a growing list of token ids into text, piece by piece. Each piece is whole UTF-8, no
// character is split, and all pieces together are exactly what Tokenizer::decode gives for all ids.
// One per stream, used by one thread at a time; the tokenizer must outlive it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace lorry {

class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The text that is certain now: empty while the last character is incomplete, and while a run of
  // byte tokens goes on, since one wrong byte changes how the whole run decodes.
  std::string push(int32_t id);
  // What is left; an incomplete character becomes U+FFFD. The decoder is empty afterwards.
  std::string finish();
  // What finish() would give, with the decoder left as it is.
  std::string rest() const;

 private:
  // Advances over the token's bytes: is the text complete after them?
  bool ends_character(int32_t id);
  std::string take_pending();
  // The text that `all`, the context and the pending tokens, adds to that of the context.
  std::string fresh_text(const std::vector<int32_t>& all) const;

  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::vector<int32_t> context_;  // already given out; pending tokens decode differently without
  std::vector<int32_t> pending_;
  // The incomplete character: bytes still expected, and the range of the next one.
  int expected_ = 0;
  uint8_t lowest_ = 0x80;
  uint8_t highest_ = 0xBF;
};

}  // namespace lorry
