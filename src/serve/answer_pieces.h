// AnswerPieces: an answer's text as OpenAI's clients get it, a piece at a time: cut before its stop
// texts, with the calls of functions taken out of it.
#pragma once
#include <string_view>

#include "serve/stop_filter.h"
#include "serve/tool_calls.h"

namespace lorry {

struct Answer;
struct Results;

class AnswerPieces {
 public:
  explicit AnswerPieces(const Results& results);

  // What the answer's text has more than at the last call, but for what is held back.
  AnswerPiece next(const Results& results, const Answer& answer);
  // The same and what was held back; the answer has its finish.
  AnswerPiece last(const Results& results, const Answer& answer);

  size_t n_calls() const { return tools_.n_calls(); }
  bool stopped() const { return filter_.stopped(); }  // by a stop text

 private:
  std::string_view new_text(const Results& results, const Answer& answer);

  StopFilter filter_;
  ToolCallParser tools_;
  size_t fed_ = 0;       // bytes of Answer::text that the filter has seen
  bool marked_ = false;  // the parser of calls knows of the marker
};

}  // namespace lorry
