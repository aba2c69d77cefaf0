// The messages of a chat: checked, and brought into the form that chat templates read.
#pragma once
#include <string>

#include "base/json.h"
#include "serve/tools.h"

namespace lorry {

// `messages` of a request's body as a JSON array: content as one string, arguments of calls as
// objects. `native`: the template knows tools; else the tools become a system text, calls the text
// of their message and results messages of the user. Throws RequestError.
std::string canonical_messages(const json::object& body, const ToolRequest& tools, bool native);

}  // namespace lorry
