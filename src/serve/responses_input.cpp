#include "serve/responses_input.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"
#include "serve/errors.h"
#include "serve/fields.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

std::string needed_text(const json::object& item, std::string_view name, const std::string& where) {
  const json::value* found = member(item, name);
  if (found == nullptr || !found->is_string() || found->as_string().empty()) {
    refuse_field(where, fmt::format("needs a string `{}` that is not empty", name));
  }
  return text_of(*found);
}

// The words of a part: text that was put in or put out, or what a model said in refusal.
json::value part_of(const json::value& part, const std::string& where) {
  if (!part.is_object()) refuse_field(where, fmt::format("holds {}, not a part", kind_of(part)));
  const std::string type = needed_text(part.as_object(), "type", where);
  const bool refusal = type == "refusal";
  if (!refusal && type != "input_text" && type != "output_text" && type != "text") {
    refuse_field(where, fmt::format("holds a part of the type {}: modality not supported, only "
                                    "input_text, output_text and refusal are",
                                    quote(type, 40)));
  }
  const json::value* text = part.as_object().if_contains(refusal ? "refusal" : "text");
  if (text == nullptr || !text->is_string()) {
    refuse_field(where, fmt::format("holds a part without its `{}`", refusal ? "refusal" : "text"));
  }
  return json::object{{"type", "text"}, {"text", *text}};
}

json::value content_of(const json::value* content, const std::string& where) {
  if (content != nullptr && content->is_string()) return *content;
  if (content == nullptr || !content->is_array()) {
    refuse_field(where, fmt::format("must be a string or a list of parts, found {}",
                                    content == nullptr ? "no such field" : kind_of(*content)));
  }
  json::array parts;
  for (const json::value& part : content->as_array()) parts.push_back(part_of(part, where));
  return parts;
}

json::object message_of(const json::object& item, const std::string& where) {
  constexpr std::array kRoles = {"user", "assistant", "system", "developer"};
  const json::value* role = item.if_contains("role");
  if (role == nullptr || !role->is_string() ||
      std::find(kRoles.begin(), kRoles.end(), text_of(*role)) == kRoles.end()) {
    refuse_field(where + ".role", "must be one of user, assistant, system, developer");
  }
  return {{"role", *role},
          {"content", content_of(item.if_contains("content"), where + ".content")}};
}

json::object call_of(const json::object& item, const std::string& where) {
  const json::value* arguments = member(item, "arguments");
  if (arguments == nullptr || !arguments->is_string()) {
    refuse_field(where, "needs `arguments` that are a JSON object as text");
  }
  return {{"id", needed_text(item, "call_id", where)},
          {"type", "function"},
          {"function", {{"name", needed_text(item, "name", where)}, {"arguments", *arguments}}}};
}

// Calls are one message with what the assistant said before them, as chats have it.
void add_call(json::array& messages, json::object call) {
  const bool follows = !messages.empty() && messages.back().as_object().at("role") == "assistant";
  if (!follows) messages.push_back(json::object{{"role", "assistant"}});
  json::object& message = messages.back().as_object();
  if (!message.contains("tool_calls")) message["tool_calls"] = json::array();
  message["tool_calls"].as_array().push_back(std::move(call));
}

void add_item(json::array& messages, const json::value& value, const std::string& where) {
  if (!value.is_object())
    refuse_field(where, fmt::format("must be an object, found {}", kind_of(value)));
  const json::object& item = value.as_object();
  const json::value* type = member(item, "type");
  if (type != nullptr && !type->is_string()) refuse_field(where + ".type", "must be a string");
  const std::string kind = type == nullptr ? "message" : text_of(*type);
  if (kind == "message") {
    messages.push_back(message_of(item, where));
  } else if (kind == "function_call") {
    add_call(messages, call_of(item, where));
  } else if (kind == "function_call_output") {
    messages.push_back(
        json::object{{"role", "tool"},
                     {"tool_call_id", needed_text(item, "call_id", where)},
                     {"content", content_of(item.if_contains("output"), where + ".output")}});
  } else {
    refuse_field(where, fmt::format("of the type {} is not supported: expected message, "
                                    "function_call or function_call_output",
                                    quote(kind, 40)));
  }
}

json::array messages_of(const json::object& body) {
  json::array messages;
  if (const json::value* said = member(body, "instructions")) {
    if (!said->is_string()) refuse_field("instructions", "must be a string");
    messages.push_back(json::object{{"role", "system"}, {"content", *said}});
  }
  const json::value* input = member(body, "input");
  if (input != nullptr && input->is_string()) {
    messages.push_back(json::object{{"role", "user"}, {"content", *input}});
    return messages;
  }
  if (input == nullptr || !input->is_array() || input->as_array().empty()) {
    refuse_field("input", fmt::format("must be a string or a list of items that is not empty, "
                                      "found {}",
                                      input == nullptr    ? "no such field"
                                      : input->is_array() ? "an empty list"
                                                          : kind_of(*input)));
  }
  size_t i = 0;
  for (const json::value& item : input->as_array()) {
    add_item(messages, item, fmt::format("input[{}]", i++));
  }
  return messages;
}

// {"type": "function", "name": ...} with the rest in an object of its own, which is what a chat has
// for tools and choices; all else as it is, for who reads the chat to refuse.
json::value with_function(const json::value& value, const std::string& where) {
  if (!value.is_object()) return value;
  const json::object& flat = value.as_object();
  const json::value* type = member(flat, "type");
  if (type == nullptr || *type != "function" || flat.contains("function")) return value;
  needed_text(flat, "name", where);
  json::object function = flat;
  function.erase("type");
  return json::object{{"type", "function"}, {"function", std::move(function)}};
}

}  // namespace

json::object chat_of_response(const json::object& body) {
  json::object chat{{"messages", messages_of(body)}};
  if (const json::value* tools = member(body, "tools")) {
    chat["tools"] = *tools;
    if (tools->is_array()) {
      json::array list;
      for (const json::value& tool : tools->as_array()) {
        list.push_back(with_function(tool, fmt::format("tools[{}]", list.size())));
      }
      chat["tools"] = std::move(list);
    }
  }
  if (const json::value* choice = member(body, "tool_choice")) {
    chat["tool_choice"] = with_function(*choice, "tool_choice");
  }
  return chat;
}

}  // namespace lorry
