#include "serve/tool_calls.h"

#include <algorithm>

#include "serve/intake.h"

namespace lorry {

namespace {

constexpr std::string_view kBlanks = " \n\r\t";
// A name and what stands around it; an object without one in its beginning is no call.
constexpr size_t kLongestHead = 256;

// Nine letters and digits: what Mistral's templates take in a history.
std::string call_id() {
  constexpr std::string_view kDigits =
      "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::string id;
  uint64_t bits = random_u64();
  for (int i = 0; i < 9; ++i, bits /= kDigits.size()) id += kDigits[bits % kDigits.size()];
  return id;
}

// Reads along a text of which the end may be missing.
struct Cursor {
  std::string_view text;
  bool short_of_text = false;  // the end came before a mismatch

  void skip_blanks() { text.remove_prefix(std::min(text.find_first_not_of(kBlanks), text.size())); }
  // Blanks, then `word`.
  bool take(std::string_view word) {
    skip_blanks();
    const size_t n = std::min(word.size(), text.size());
    if (text.substr(0, n) != word.substr(0, n)) return false;
    short_of_text = n < word.size();
    if (!short_of_text) text.remove_prefix(n);
    return !short_of_text;
  }
  // Blanks, then a string without escapes.
  bool take_string(std::string_view* out) {
    if (!take("\"")) return false;
    const size_t end = text.find_first_of("\"\\");
    short_of_text = end == text.npos;
    if (short_of_text || text[end] != '"') return false;
    *out = text.substr(0, end);
    text.remove_prefix(end + 1);
    return true;
  }
};

struct Head {
  bool found = false;
  bool unfinished = false;  // more text may complete it
  std::string_view name;
  std::string_view rest;  // from the { of the arguments
};

// {"name": "...", "arguments": {
Head read_head(std::string_view text) {
  Cursor at{text};
  Head head;
  std::string_view key;
  head.found = at.take("{") && at.take("\"name\"") && at.take(":") && at.take_string(&head.name) &&
               at.take(",") && at.take_string(&key) &&
               (key == "arguments" || key == "parameters") && at.take(":") && at.take("{");
  head.unfinished = !head.found && at.short_of_text && text.size() < kLongestHead;
  if (head.found) head.rest = text.substr(text.size() - at.text.size() - 1);
  return head;
}

}  // namespace

bool ToolCallParser::is_known(std::string_view name) const {
  return std::find(plan_.names.begin(), plan_.names.end(), name) != plan_.names.end();
}

AnswerPiece ToolCallParser::push(std::string_view text) {
  held_ += text;
  AnswerPiece out;
  while (step(out)) {
  }
  return out;
}

AnswerPiece ToolCallParser::mark() {
  AnswerPiece out;
  if (state_ != State::begin && state_ != State::text) return out;
  if (held_.find_first_not_of(kBlanks) != std::string::npos) out.text = std::move(held_);
  held_.clear();
  marked_ = true;
  state_ = State::begin;
  return out;
}

AnswerPiece ToolCallParser::finish() {
  AnswerPiece out;
  if (state_ == State::begin) give_up(out);
  return out;
}

void ToolCallParser::give_up(AnswerPiece& out) {
  out.text += held_;
  held_.clear();
  state_ = State::text;
}

bool ToolCallParser::step(AnswerPiece& out) {
  if (held_.empty()) return false;
  switch (state_) {
    case State::begin:
      return begin(out);
    case State::call:
      return call(out, false);
    case State::arguments:
      return arguments(out);
    case State::rest:
      return rest();
    case State::between:
      return between();
    case State::text:
      give_up(out);
      return false;
    case State::done:
      held_.clear();
      return false;
  }
  return false;
}

bool ToolCallParser::begin(AnswerPiece& out) {
  Cursor at{held_};
  if (!marked_ && at.take(kToolMarker)) {
    marked_ = true;
    held_.erase(0, held_.size() - at.text.size());
    return true;
  }
  // A lone [ may begin either a list or the marker: the head of a call decides.
  return call(out, true);
}

bool ToolCallParser::call(AnswerPiece& out, bool first) {
  Cursor at{held_};
  const bool list = first && at.take("[");
  const Head head = read_head(at.text);
  if (head.found && is_known(head.name)) {
    in_list_ |= list;
    out.calls.push_back({n_calls_++, call_id(), std::string(head.name), ""});
    held_.erase(0, held_.size() - head.rest.size());
    depth_ = 0;
    state_ = State::arguments;
    return true;
  }
  if (head.unfinished) return false;
  // The marker of a model that writes it as text.
  if (Cursor marker{held_}; !marked_ && !marker.take(kToolMarker) && marker.short_of_text) {
    return false;
  }
  if (first) {
    give_up(out);
  } else {
    state_ = State::done;
  }
  return true;
}

// The number of bytes of held_ up to the bracket that brings depth_ to `level`, or all of them.
size_t ToolCallParser::scan(int level, bool* closed) {
  for (size_t n = 0; n < held_.size(); ++n) {
    const char c = held_[n];
    if (in_string_) {
      in_string_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      in_string_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if ((c == '}' || c == ']') && --depth_ == level) {
      *closed = true;
      return n + 1;
    }
  }
  return held_.size();
}

bool ToolCallParser::arguments(AnswerPiece& out) {
  bool closed = false;
  const size_t n = scan(0, &closed);
  const size_t call = n_calls_ - 1;
  if (out.calls.empty() || out.calls.back().index != call) out.calls.push_back({call, "", "", ""});
  out.calls.back().arguments.append(held_, 0, n);
  held_.erase(0, n);
  if (closed) state_ = State::rest;
  return closed;
}

// Further members of the call ("id"), up to its closing bracket.
bool ToolCallParser::rest() {
  bool closed = false;
  held_.erase(0, scan(-1, &closed));
  if (closed) state_ = in_list_ && plan_.parallel ? State::between : State::done;
  return closed;
}

bool ToolCallParser::between() {
  Cursor at{held_};
  const bool more = at.take(",");
  if (!more && at.text.empty()) return false;
  state_ = more ? State::call : State::done;
  held_.erase(0, held_.size() - at.text.size());
  return true;
}

void write_tool_calls(JsonWriter& json, const std::vector<ToolCallPiece>& calls, bool streaming) {
  json.begin_array();
  for (const ToolCallPiece& call : calls) {
    json.begin_object();
    if (streaming) json.member("index", call.index);
    if (!call.id.empty()) json.member("id", call.id).member("type", "function");
    json.key("function").begin_object();
    if (!call.name.empty()) json.member("name", call.name);
    json.member("arguments", call.arguments).end_object().end_object();
  }
  json.end_array();
}

std::vector<ToolCallPiece> whole_calls(const std::vector<ToolCallPiece>& pieces) {
  std::vector<ToolCallPiece> whole;
  for (const ToolCallPiece& piece : pieces) {
    if (!piece.id.empty()) {
      whole.push_back(piece);
    } else {
      whole.back().arguments += piece.arguments;
    }
  }
  return whole;
}

}  // namespace lorry
