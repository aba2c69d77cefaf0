#include "serve/chat_messages.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <vector>

#include <boost/json/serialize.hpp>

#include "base/error.h"
#include "serve/errors.h"
#include "serve/fields.h"
#include "serve/json_writer.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

struct Call {
  std::string id, name;
  json::value arguments;  // an object
};

struct Message {
  std::string role, content;
  std::optional<std::string> name, tool_call_id;
  std::vector<Call> calls;
};

std::optional<std::string> string_member(const json::object& object, std::string_view name,
                                         const std::string& where) {
  const json::value* found = member(object, name);
  if (found == nullptr) return std::nullopt;
  if (!found->is_string()) refuse_field(fmt::format("{}.{}", where, name), "must be a string");
  return text_of(*found);
}

std::string part_text(const json::value& part, const std::string& where) {
  if (!part.is_object()) refuse_field(where, fmt::format("holds {}, not a part", kind_of(part)));
  const json::value* type = part.as_object().if_contains("type");
  if (type == nullptr || !type->is_string())
    refuse_field(where, "holds a part without a string `type`");
  if (text_of(*type) != "text") {
    refuse_field(where,
                 fmt::format("holds a part of the type {}: modality not supported, only text is",
                             quote(text_of(*type), 40)));
  }
  const json::value* text = part.as_object().if_contains("text");
  if (text == nullptr || !text->is_string())
    refuse_field(where, "holds a text part without `text`");
  return text_of(*text);
}

std::string content_of(const json::object& message, const std::string& where) {
  const json::value* content = message.if_contains("content");
  if (content != nullptr && content->is_string()) return text_of(*content);
  if (content == nullptr || !content->is_array()) {
    refuse_field(where + ".content",
                 fmt::format("must be a string or a list of parts, found {}",
                             content == nullptr ? "no such field" : kind_of(*content)));
  }
  std::string joined;
  for (const json::value& part : content->as_array()) {
    if (!joined.empty()) joined += '\n';
    joined += part_text(part, where + ".content");
  }
  return joined;
}

std::string role_of(const json::object& message, const std::string& where) {
  const json::value* role = message.if_contains("role");
  constexpr std::array kRoles = {"system", "developer", "user", "assistant", "tool"};
  if (role == nullptr || !role->is_string()) refuse_field(where + ".role", "must be a string");
  std::string name = text_of(*role);
  if (std::find(kRoles.begin(), kRoles.end(), name) == kRoles.end()) {
    refuse_field(where + ".role",
                 fmt::format("must be one of system, developer, user, assistant, tool. Given: {}",
                             quote(name, 40)));
  }
  return name;
}

// OpenAI's arguments are JSON text, templates print an object.
json::value arguments_of(const json::object& function, const std::string& where) {
  const json::value* given = member(function, "arguments");
  if (given == nullptr) return json::object();
  if (given->is_object()) return *given;
  const std::string what = "needs `function.arguments` that are a JSON object as text";
  if (!given->is_string()) refuse_field(where, what);
  if (given->as_string().empty()) return json::object();
  try {
    json::value value = parse_json(text_of(*given), "the arguments");
    if (!value.is_object()) refuse_field(where, what);
    return value;
  } catch (const RequestError&) {
    throw;
  } catch (const Error&) {
    refuse_field(where, what);
  }
}

std::vector<Call> calls_of(const json::object& message, const std::string& message_place) {
  std::vector<Call> calls;
  const json::value* list = member(message, "tool_calls");
  if (list == nullptr) return calls;
  const std::string where = message_place + ".tool_calls";
  if (!list->is_array())
    refuse_field(where, fmt::format("must be a list, found {}", kind_of(*list)));
  for (const json::value& value : list->as_array()) {
    const json::value* function =
        value.is_object() ? member(value.as_object(), "function") : nullptr;
    if (function == nullptr || !function->is_object()) {
      refuse_field(where, "needs an object `function` in each call");
    }
    Call call;
    call.id = string_member(value.as_object(), "id", where).value_or("");
    call.name = string_member(function->as_object(), "name", where).value_or("");
    if (call.id.empty() || call.name.empty()) {
      refuse_field(where, "needs an `id` and a `function.name` in each call");
    }
    call.arguments = arguments_of(function->as_object(), where);
    calls.push_back(std::move(call));
  }
  return calls;
}

Message read_message(const json::value& value, const std::string& where) {
  if (!value.is_object())
    refuse_field(where, fmt::format("must be an object, found {}", kind_of(value)));
  const json::object& object = value.as_object();
  for (const char* field : {"function_call", "audio"}) {
    if (member(object, field) != nullptr) refuse_field(where + "." + field, "is not supported");
  }
  Message message;
  message.role = role_of(object, where);
  message.calls = calls_of(object, where);
  if (!message.calls.empty() && message.role != "assistant") {
    refuse_field(where + ".tool_calls", "can only be those of an assistant");
  }
  if (message.calls.empty() || member(object, "content") != nullptr) {
    message.content = content_of(object, where);
  }
  message.name = string_member(object, "name", where);
  message.tool_call_id = string_member(object, "tool_call_id", where);
  if (message.role == "tool" && !message.tool_call_id) {
    refuse_field(where + ".tool_call_id", "must say which call this is the result of");
  }
  return message;
}

// ---- for templates that know no tools

std::string text_of_calls(const std::vector<Call>& calls) {
  json::array list;
  for (const Call& call : calls) {
    list.push_back(json::object{{"name", call.name}, {"arguments", call.arguments}});
  }
  return json::serialize(list);
}

void say_in_system_text(std::vector<Message>& messages, const std::string& text) {
  const bool has_one = messages[0].role == "system" || messages[0].role == "developer";
  if (!has_one) {
    messages.insert(messages.begin(), Message{"system", text, {}, {}, {}});
  } else {
    messages[0].content += (messages[0].content.empty() ? "" : "\n\n") + text;
  }
}

std::vector<Message> without_tools(std::vector<Message> messages) {
  std::vector<Message> plain;
  std::map<std::string, std::string> names;  // of the functions, by the ids of calls
  bool results = false;                      // the last one holds results
  for (Message& message : messages) {
    for (const Call& call : message.calls) names[call.id] = call.name;
    if (!message.calls.empty()) {
      message.content += (message.content.empty() ? "" : "\n") + text_of_calls(message.calls);
      message.calls.clear();
    }
    const bool result = message.role == "tool";
    if (result) {
      const auto known = names.find(*message.tool_call_id);
      const std::string& name = known == names.end() ? *message.tool_call_id : known->second;
      message = {"user", fmt::format("Result of {}:\n{}", name, message.content), {}, {}, {}};
      // Templates want the roles to alternate.
      if (results) {
        plain.back().content += "\n\n" + message.content;
        continue;
      }
    }
    results = result;
    plain.push_back(std::move(message));
  }
  return plain;
}

void write(JsonWriter& json, const Message& message) {
  json.begin_object().member("role", message.role).member("content", message.content);
  if (message.name) json.member("name", *message.name);
  if (message.tool_call_id) json.member("tool_call_id", *message.tool_call_id);
  if (!message.calls.empty()) {
    json.key("tool_calls").begin_array();
    for (const Call& call : message.calls) {
      json.begin_object().member("id", call.id).member("type", "function");
      json.key("function").begin_object().member("name", call.name);
      json.key("arguments").raw(json::serialize(call.arguments)).end_object().end_object();
    }
    json.end_array();
  }
  json.end_object();
}

}  // namespace

std::string canonical_messages(const json::object& body, const ToolRequest& tools, bool native) {
  const json::value* list = body.if_contains("messages");
  if (list == nullptr || !list->is_array() || list->as_array().empty()) {
    refuse_field("messages", fmt::format("must be a list of messages that is not empty, found {}",
                                         list == nullptr ? "no such field" : kind_of(*list)));
  }
  std::vector<Message> messages;
  for (const json::value& value : list->as_array()) {
    messages.push_back(read_message(value, fmt::format("messages[{}]", messages.size())));
  }
  if (!native) {
    messages = without_tools(std::move(messages));
    if (!tools.tools.empty()) say_in_system_text(messages, tools_text(tools));
  }
  JsonWriter json;
  json.begin_array();
  for (const Message& message : messages) write(json, message);
  return json.end_array().take();
}

}  // namespace lorry
