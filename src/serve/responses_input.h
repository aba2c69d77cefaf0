// The input of POST /v1/responses in the form of a chat's.
#pragma once
#include "base/json.h"

namespace lorry {

// `messages`, `tools` and `tool_choice` of a chat, from `instructions`, `input`, `tools` and
// `tool_choice` of a response's request. Throws RequestError naming the field as the client wrote
// it; what both have in common is checked by those who read the chat.
json::object chat_of_response(const json::object& body);

}  // namespace lorry
