// What a conversation makes of a Job: its prompt, and what its tools ask of the answer.
#pragma once
#include "base/json.h"
#include "serve/generation.h"
#include "serve/intake.h"
#include "serve/tools.h"

namespace lorry {

// The `messages` of a chat's body, with the tools, in the words of the model's template. Throws
// RequestError.
Prompt chat_prompt(const json::object& body, const ToolRequest& tools, const Intake& intake);

// Which functions the answer may call, and the form that it then has. Throws RequestError.
void add_tools(Job& job, const ToolRequest& tools, const Intake& intake);

}  // namespace lorry
