#include "serve/answer_pieces.h"

#include <algorithm>

#include "serve/generation.h"

namespace lorry {

namespace {

void append(AnswerPiece& to, AnswerPiece more) {
  to.text += more.text;
  for (ToolCallPiece& call : more.calls) to.calls.push_back(std::move(call));
}

}  // namespace

AnswerPieces::AnswerPieces(const Results& results)
    : filter_(results.job.request.stop), tools_(results.job.tools) {}

std::string_view AnswerPieces::new_text(const Results& results, const Answer& answer) {
  std::string_view fresh = std::string_view(answer.text).substr(fed_);
  fed_ = answer.text.size();
  const std::vector<int32_t>& ids = results.job.request.stop_token_ids;
  if (!answer.tokens.empty() && !answer.tokens.back().special &&
      std::find(ids.begin(), ids.end(), answer.tokens.back().id) != ids.end()) {
    fresh.remove_suffix(std::min(fresh.size(), answer.tokens.back().text.size()));
  }
  return fresh;
}

AnswerPiece AnswerPieces::next(const Results& results, const Answer& answer) {
  const size_t from = fed_;
  std::string_view fresh = new_text(results, answer);
  if (results.job.tools.names.empty()) return {filter_.push(fresh), {}};
  AnswerPiece out;
  if (answer.tool_marker && !marked_) {
    const size_t n = std::min(*answer.tool_marker - from, fresh.size());
    append(out, tools_.push(filter_.push(fresh.substr(0, n)) + filter_.finish()));
    append(out, tools_.mark());
    marked_ = true;
    fresh.remove_prefix(n);
  }
  append(out, tools_.push(filter_.push(fresh)));
  return out;
}

AnswerPiece AnswerPieces::last(const Results& results, const Answer& answer) {
  AnswerPiece fresh = next(results, answer);
  const std::string rest = filter_.finish();
  if (results.job.tools.names.empty()) {
    fresh.text += rest;
    return fresh;
  }
  append(fresh, tools_.push(rest));
  append(fresh, tools_.finish());
  return fresh;
}

}  // namespace lorry
