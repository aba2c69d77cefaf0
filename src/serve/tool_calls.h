// ToolCallParser: finds the calls of functions in an answer as its text grows, and passes on the
// text that is none. A call is told as soon as its name and the beginning of its arguments are
// known; what its arguments hold is passed on as it comes, so an answer that breaks off leaves them
// unfinished.
//
// What counts as calls: an answer that begins with an object {"name": of a known function,
// "arguments" or "parameters": {...}}, or a list of them; anywhere behind [TOOL_CALLS].
#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "serve/json_writer.h"
#include "serve/tools.h"

namespace lorry {

// A part of a call. `name` and `id` are set in its first one.
struct ToolCallPiece {
  size_t index = 0;  // of the call in the answer
  std::string id, name;
  std::string arguments;  // JSON text, or a part of it
};

struct AnswerPiece {
  std::string text;
  std::vector<ToolCallPiece> calls;
  bool empty() const { return text.empty() && calls.empty(); }
};

class ToolCallParser {
 public:
  explicit ToolCallParser(const ToolPlan& plan) : plan_(plan) {}

  AnswerPiece push(std::string_view text);
  // The token [TOOL_CALLS], which has no text.
  AnswerPiece mark();
  // What was held back. Nothing follows.
  AnswerPiece finish();

  size_t n_calls() const { return n_calls_; }

 private:
  enum class State {
    begin,      // it can still be either
    text,       // an ordinary answer
    call,       // before a call of a list
    arguments,  // in the arguments of one
    rest,       // behind them, in the call's object
    between,    // behind a call
    done        // behind all calls: what follows is dropped
  };
  // Each takes what it can from held_. False: more is needed first.
  bool step(AnswerPiece& out);
  bool begin(AnswerPiece& out);
  bool call(AnswerPiece& out, bool first);
  bool arguments(AnswerPiece& out);
  bool rest();
  bool between();
  size_t scan(int level, bool* closed);
  void give_up(AnswerPiece& out);  // it is text after all
  bool is_known(std::string_view name) const;

  const ToolPlan plan_;
  State state_ = State::begin;
  std::string held_;
  bool in_list_ = false;
  bool marked_ = false;
  size_t n_calls_ = 0;
  int depth_ = 0;  // brackets open in the arguments, or behind them in the call's object
  bool in_string_ = false, escaped_ = false;
};

// The value of `tool_calls`: whole calls, or the pieces of a stream's delta (with their `index`).
void write_tool_calls(JsonWriter& json, const std::vector<ToolCallPiece>& calls, bool streaming);

// The pieces of each call put together.
std::vector<ToolCallPiece> whole_calls(const std::vector<ToolCallPiece>& pieces);

}  // namespace lorry
