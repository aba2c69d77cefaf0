#include "serve/answer_format.h"

#include <cctype>

#include <boost/json/serialize.hpp>

#include "base/error.h"
#include "serve/errors.h"
#include "serve/fields.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

constexpr std::string_view kAnyObject = R"({"type":"object"})";

// A schema, or JSON text that is one.
AnswerFormat json_schema(const json::value& schema, const std::string& field) {
  if (schema.is_string()) return {{GrammarKind::json_schema, text_of(schema)}, field};
  if (!schema.is_object() && !schema.is_bool()) {
    refuse_field(field,
                 fmt::format("needs a JSON schema that is an object, found {}", kind_of(schema)));
  }
  return {{GrammarKind::json_schema, json::serialize(schema)}, field};
}

AnswerFormat text_grammar(const json::value* text, GrammarKind kind, const std::string& field) {
  if (text == nullptr || !text->is_string() || text->as_string().empty()) {
    refuse_field(field, fmt::format("needs it as a string that is not empty, found {}",
                                    text == nullptr ? "no such field" : kind_of(*text)));
  }
  return {{kind, text_of(*text)}, field};
}

// OpenAI's: {name, description, schema, strict}. It is exact whether it is called strict or not.
AnswerFormat named_schema(const json::value& value, const std::string& field) {
  if (!value.is_object()) {
    refuse_field(field, fmt::format("needs an object as `json_schema`, found {}", kind_of(value)));
  }
  const json::object& object = value.as_object();
  const json::value* name = member(object, "name");
  if (name != nullptr && !name->is_string()) {
    refuse_field(field, "needs a string as `json_schema.name`");
  }
  const json::value* strict = member(object, "strict");
  if (strict != nullptr && !strict->is_bool()) {
    refuse_field(field, "needs true or false as `json_schema.strict`");
  }
  const json::value* schema = member(object, "schema");
  if (schema == nullptr) refuse_field(field, "needs a `json_schema.schema`");
  return json_schema(*schema, field);
}

// A regular expression for exactly that text.
std::string literal(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 || std::isalnum(byte) != 0) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", byte);
    }
  }
  return out;
}

}  // namespace

std::optional<AnswerFormat> read_response_format(const json::value& value,
                                                 const std::string& name) {
  const json::value* type = value.is_object() ? value.as_object().if_contains("type") : nullptr;
  if (type == nullptr || !type->is_string())
    refuse_field(name, "must be an object with a string `type`");
  const json::object& object = value.as_object();
  const json::value* schema = member(object, "schema");
  const std::string wanted = text_of(*type);
  if (wanted == "text") return std::nullopt;
  if (wanted == "json_object") {
    if (schema != nullptr) return json_schema(*schema, name);
    return AnswerFormat{{GrammarKind::json_schema, std::string(kAnyObject)}, name};
  }
  if (wanted == "json_schema") {
    if (const json::value* openai = member(object, "json_schema")) {
      return named_schema(*openai, name);
    }
    if (schema == nullptr) refuse_field(name, "of the type json_schema needs a `schema`");
    return json_schema(*schema, name);
  }
  if (wanted == "regex") return text_grammar(schema, GrammarKind::regex, name);
  if (wanted == "grammar") return text_grammar(schema, GrammarKind::lark, name);
  refuse_field(name, fmt::format("of the type {} is not supported: expected text, json_object, "
                                 "json_schema, regex or grammar",
                                 quote(wanted, 40)));
}

std::optional<AnswerFormat> read_guided_json(const json::value& value, const std::string& name) {
  return json_schema(value, name);
}

std::optional<AnswerFormat> read_guided_regex(const json::value& value, const std::string& name) {
  return text_grammar(&value, GrammarKind::regex, name);
}

std::optional<AnswerFormat> read_guided_choice(const json::value& value, const std::string& name) {
  if (!value.is_array() || value.as_array().empty()) {
    refuse_field(name, fmt::format("must be a list of strings that is not empty, found {}",
                                   value.is_array() ? "an empty list" : kind_of(value)));
  }
  std::string all;
  for (const json::value& choice : value.as_array()) {
    if (!choice.is_string() || choice.as_string().empty()) {
      refuse_field(name, fmt::format("holds {}, not a string with text",
                                     choice.is_string() ? "an empty string" : kind_of(choice)));
    }
    if (!all.empty()) all += '|';
    all += literal(text_of(choice));
  }
  return AnswerFormat{{GrammarKind::regex, all}, name};
}

std::optional<AnswerFormat> read_structured_outputs(const json::value& value,
                                                    const std::string& name) {
  if (!value.is_object())
    refuse_field(name, fmt::format("must be an object, found {}", kind_of(value)));
  std::optional<AnswerFormat> found;
  for (const auto& [key, what] : value.as_object()) {
    if (what.is_null() || (what.is_bool() && !what.as_bool())) continue;
    if (found) refuse_field(name, "asks for more than one form of the answer");
    if (key == "json") {
      found = read_guided_json(what, name);
    } else if (key == "regex") {
      found = read_guided_regex(what, name);
    } else if (key == "choice") {
      found = read_guided_choice(what, name);
    } else if (key == "json_object") {
      found = AnswerFormat{{GrammarKind::json_schema, std::string(kAnyObject)}, name};
    } else {
      refuse_field(name, fmt::format("with {} is not supported: expected json, regex, choice or "
                                     "json_object",
                                     quote({key.data(), key.size()}, 40)));
    }
  }
  return found;
}

}  // namespace lorry
