// StopTexts: watches for a request's stop texts in its answer as it grows. Engine thread only.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace lorry {

class StopTexts {
 public:
  // Both outlive this; none of the texts is empty.
  StopTexts(const Tokenizer& tokenizer, const std::vector<std::string>& stops);

  // The next token. Empty, or the stop text that the answer now holds: the one that begins first
  // and, of several at one place, the first named. The bytes that a run of byte tokens has so far
  // count as text.
  std::string push(int32_t id);

 private:
  const std::string* first_in(const std::string& text) const;  // null: none
  std::string push_in_run(int32_t id);

  const Tokenizer& tokenizer_;
  const std::vector<std::string>& stops_;
  size_t longest_ = 0;
  StreamDecoder decoder_;
  std::string tail_;  // the end of the text, as long as a stop text might have begun in it
  std::string run_;   // bytes of the byte tokens that the decoder still holds back
};

}  // namespace lorry
