#include "serve/chat_request.h"

#include <optional>

#include "serve/chat_messages.h"
#include "serve/errors.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

// The token that a model's calls follow, where its template makes it so.
std::optional<int32_t> tool_marker(const Intake& intake) {
  if (intake.chat == nullptr || !intake.chat->takes_tools()) return std::nullopt;
  return intake.tokenizer.id_of(kToolMarker);
}

}  // namespace

Prompt chat_prompt(const json::object& body, const ToolRequest& tools, const Intake& intake) {
  const bool native = intake.chat != nullptr && intake.chat->takes_tools();
  const std::string messages = canonical_messages(body, tools, native);
  const std::string list = tools.tools.empty() || !native ? "" : tools_json(tools);
  check_bytes(messages.size() + list.size(), Api::chat, intake);
  Prompt prompt = render_chat(messages, intake, list.empty() ? "{}" : "{\"tools\":" + list + "}");
  if (prompt.ids.empty()) refuse_field("messages", "give an empty prompt");
  return prompt;
}

void add_tools(Job& job, const ToolRequest& tools, const Intake& intake) {
  if (tools.tools.empty()) return;
  if (job.fields.format) {
    refuse_field(job.fields.format->field,
                 "and `tools` cannot both say what the answer must match");
  }
  for (const Tool& tool : tools.tools) job.tools.names.push_back(tool.name);
  job.tools.parallel = tools.parallel;
  if (auto grammar = tool_grammar(tools, tool_marker(intake))) {
    job.fields.format = AnswerFormat{*std::move(grammar), "tools"};
  }
}

}  // namespace lorry
