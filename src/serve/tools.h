// Functions that a chat may call: `tools` and `tool_choice` of a request, what they make of its
// prompt and of its answer's form.
//
// A chat template that reads `tools` gets them. For one that does not, a system text lists them,
// and calls and results in the history become ordinary messages (chat_messages.h). A call is
// {"name": ..., "arguments": {...}}; an answer that calls is a JSON list of them, behind the token
// [TOOL_CALLS] where the model has one and its template takes tools (Mistral's form).
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "serve/grammar_cache.h"

namespace lorry {

inline constexpr std::string_view kToolMarker = "[TOOL_CALLS]";

struct Tool {
  std::string name;
  json::value given;       // all of it, as the client wrote it
  json::value parameters;  // JSON schema of the arguments, an object
  bool strict = false;     // arguments must match even where calling is free
};

enum class ToolUse { none, automatic, required };

// What a request asks for; no tools: ToolUse::none.
struct ToolRequest {
  std::vector<Tool> tools;
  ToolUse use = ToolUse::none;
  bool parallel = true;  // several calls in one answer
};

// What the presenter needs to know.
struct ToolPlan {
  std::vector<std::string> names;  // that an answer may call; empty: it is text
  bool parallel = true;
};

// Of the request's body. A tool that `tool_choice` names is the only one left. Throws RequestError.
ToolRequest read_tools(const json::object& body, bool parallel);

// What the answer must match: calls where they are required; text or calls that match where a
// strict tool may be called; else nothing. `marker`: the id of [TOOL_CALLS] where it comes first.
std::optional<GrammarText> tool_grammar(const ToolRequest& request, std::optional<int32_t> marker);

// The `tools` of a chat template: a JSON array.
std::string tools_json(const ToolRequest& request);
// The system text for a model whose template takes no tools.
std::string tools_text(const ToolRequest& request);

}  // namespace lorry
