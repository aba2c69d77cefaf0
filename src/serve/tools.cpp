#include "serve/tools.h"

#include <algorithm>
#include <cctype>

#include <boost/json/serialize.hpp>

#include "base/error.h"
#include "serve/errors.h"
#include "serve/fields.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

constexpr size_t kMostTools = 128;  // OpenAI's
constexpr size_t kLongestName = 64;

bool is_function_name(std::string_view name) {
  return !name.empty() && name.size() <= kLongestName &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' ||
                  c == '.';
         });
}

// The function of {"type": "function", "function": {...}}.
const json::object& function_of(const json::value& value, const std::string& where) {
  if (!value.is_object())
    refuse_field(where, fmt::format("must be an object, found {}", kind_of(value)));
  const json::value* type = member(value.as_object(), "type");
  if (type == nullptr || !type->is_string() || text_of(*type) != "function") {
    refuse_field(where, "must have the `type` \"function\": other tools are not supported");
  }
  const json::value* function = member(value.as_object(), "function");
  if (function == nullptr || !function->is_object())
    refuse_field(where, "needs an object `function`");
  return function->as_object();
}

std::string name_of(const json::object& function, const std::string& where) {
  const json::value* name = member(function, "name");
  if (name == nullptr || !name->is_string() || !is_function_name(text_of(*name))) {
    refuse_field(where, fmt::format("needs a `function.name` of 1 to {} letters, digits, _, - or .",
                                    kLongestName));
  }
  return text_of(*name);
}

Tool read_tool(const json::value& value, const std::string& where) {
  const json::object& function = function_of(value, where);
  Tool tool;
  tool.name = name_of(function, where);
  tool.given = value;
  tool.parameters = json::object{{"type", "object"}};
  if (const json::value* text = member(function, "description"); text && !text->is_string()) {
    refuse_field(where, "needs a string as `function.description`");
  }
  if (const json::value* strict = member(function, "strict")) {
    if (!strict->is_bool()) refuse_field(where, "needs true or false as `function.strict`");
    tool.strict = strict->as_bool();
  }
  const json::value* parameters = member(function, "parameters");
  if (parameters == nullptr) return tool;
  if (!parameters->is_object()) {
    refuse_field(where, fmt::format("needs a JSON schema as `function.parameters`, found {}",
                                    kind_of(*parameters)));
  }
  tool.parameters = *parameters;
  json::object& schema = tool.parameters.as_object();
  const json::value* type = member(schema, "type");
  if (type != nullptr && *type != "object") {
    refuse_field(where, "needs `function.parameters` of the type object");
  }
  schema["type"] = "object";
  return tool;
}

void keep_only(ToolRequest& request, const std::string& name) {
  std::erase_if(request.tools, [&](const Tool& tool) { return tool.name != name; });
  if (request.tools.empty()) {
    refuse_field("tool_choice",
                 fmt::format("names {}, which is not among the `tools`", quote(name, 70)));
  }
  request.use = ToolUse::required;
  request.parallel = false;
}

void read_choice(const json::value& choice, ToolRequest& request) {
  if (choice.is_object()) {
    return keep_only(request, name_of(function_of(choice, "tool_choice"), "tool_choice"));
  }
  if (!choice.is_string()) {
    refuse_field("tool_choice", fmt::format("must be none, auto, required or a function, found {}",
                                            kind_of(choice)));
  }
  const std::string word = text_of(choice);
  if (word == "none") {
    request.use = ToolUse::none;
  } else if (word == "auto") {
    request.use = ToolUse::automatic;
  } else if (word == "required") {
    request.use = ToolUse::required;
  } else {
    keep_only(request, word);  // LoRAX's and TGI's form
  }
}

// ---- the schema of calls

// References within a schema that moves to `place` of another.
void move_references(json::value& schema, const std::string& place) {
  if (schema.is_array()) {
    for (json::value& item : schema.as_array()) move_references(item, place);
  }
  if (!schema.is_object()) return;
  for (auto& [key, value] : schema.as_object()) {
    if (key == "$ref" && value.is_string() && value.as_string().starts_with('#')) {
      value = place + text_of(value).substr(1);
    } else {
      move_references(value, place);
    }
  }
}

json::object schema_of_calls(const ToolRequest& request) {
  json::object definitions;
  json::array calls;
  for (size_t i = 0; i < request.tools.size(); ++i) {
    const Tool& tool = request.tools[i];
    const std::string key = fmt::format("tool{}", i);
    const std::string place = "#/$defs/" + key;
    json::value parameters = json::object{{"type", "object"}};
    if (request.use == ToolUse::required || tool.strict) parameters = tool.parameters;
    move_references(parameters, place);
    definitions[key] = std::move(parameters);
    json::object properties;
    properties["name"] = json::object{{"const", tool.name}};
    properties["arguments"] = json::object{{"$ref", place}};
    calls.push_back(json::object{{"type", "object"},
                                 {"properties", std::move(properties)},
                                 {"required", json::array{"name", "arguments"}},
                                 {"additionalProperties", false}});
  }
  json::object schema{{"type", "array"}, {"minItems", 1}};
  if (!request.parallel) schema["maxItems"] = 1;
  schema["items"] = json::object{{"anyOf", std::move(calls)}};
  schema["$defs"] = std::move(definitions);
  // As Python's json.dumps writes them, which is what models are trained with.
  schema["x-guidance"] = json::object{
      {"whitespace_flexible", false}, {"item_separator", ", "}, {"key_separator", ": "}};
  return schema;
}

}  // namespace

ToolRequest read_tools(const json::object& body, bool parallel) {
  ToolRequest request;
  request.parallel = parallel;
  const json::value* tools = member(body, "tools");
  if (tools != nullptr && !tools->is_array()) {
    refuse_field("tools", fmt::format("must be a list, found {}", kind_of(*tools)));
  }
  const json::array none;
  const json::array& list = tools == nullptr ? none : tools->as_array();
  if (list.size() > kMostTools) {
    refuse_field("tools",
                 fmt::format("supports up to {} of them. Given: {}", kMostTools, list.size()));
  }
  for (const json::value& value : list) {
    Tool tool = read_tool(value, fmt::format("tools[{}]", request.tools.size()));
    const bool twice = std::any_of(request.tools.begin(), request.tools.end(),
                                   [&](const Tool& other) { return other.name == tool.name; });
    if (twice) refuse_field("tools", fmt::format("has two functions named {}", quote(tool.name)));
    request.tools.push_back(std::move(tool));
  }
  const json::value* choice = member(body, "tool_choice");
  if (!request.tools.empty()) request.use = ToolUse::automatic;
  if (choice != nullptr && (!request.tools.empty() || (*choice != "none" && *choice != "auto"))) {
    if (request.tools.empty()) refuse_field("tool_choice", "needs `tools`");
    read_choice(*choice, request);
  }
  if (request.use == ToolUse::none) request.tools.clear();
  return request;
}

std::optional<GrammarText> tool_grammar(const ToolRequest& request, std::optional<int32_t> marker) {
  const bool strict = std::any_of(request.tools.begin(), request.tools.end(),
                                  [](const Tool& tool) { return tool.strict; });
  if (request.use != ToolUse::required && !strict) return std::nullopt;
  // Tokens of words often begin with a blank.
  const std::string head = marker ? fmt::format("<[{}]> ", *marker) : std::string();
  std::string text = fmt::format("start: {}{}/ ?/ calls\n",
                                 request.use == ToolUse::required ? "" : "words | ", head);
  text += "calls: %json " + json::serialize(schema_of_calls(request)) + "\n";
  if (request.use != ToolUse::required) text += "words: /(?s:[ \\n\\r\\t]*[^ \\n\\r\\t\\[{].*)?/\n";
  return GrammarText{GrammarKind::lark, std::move(text)};
}

std::string tools_json(const ToolRequest& request) {
  json::array list;
  for (const Tool& tool : request.tools) list.push_back(tool.given);
  return json::serialize(list);
}

std::string tools_text(const ToolRequest& request) {
  std::string text =
      "You can call functions. To call them, answer with nothing but a JSON list such as\n"
      "[{\"name\": \"function\", \"arguments\": {\"argument\": \"value\"}}]\n"
      "The functions, with the JSON schemas of their arguments:";
  for (const Tool& tool : request.tools) {
    text += "\n" + json::serialize(tool.given.at("function"));
  }
  if (request.use == ToolUse::required) text += "\nAnswer with a call.";
  return text;
}

}  // namespace lorry
