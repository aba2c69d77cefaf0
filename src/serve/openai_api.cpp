#include "serve/openai_api.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "serve/adapter_choice.h"
#include "serve/errors.h"
#include "serve/json_writer.h"

namespace lorry {

namespace {

// OpenAI's default of max_tokens on completions.
constexpr int64_t kCompletionTokens = 16;

[[noreturn]] void refuse(std::string_view field, const std::string& what) {
  throw RequestError(Problem::bad_value, fmt::format("`{}` {}", field, what), std::string(field));
}

std::string text_of(const json::value& value) {
  return {value.as_string().data(), value.as_string().size()};
}

// ---- messages

bool is_empty(const json::value& value) {
  return value.is_null() || (value.is_array() && value.as_array().empty());
}

std::string part_text(const json::value& part, size_t i) {
  const std::string where = fmt::format("messages[{}].content", i);
  if (!part.is_object()) refuse(where, fmt::format("holds {}, not a part", kind_of(part)));
  const json::value* type = part.as_object().if_contains("type");
  if (type == nullptr || !type->is_string()) refuse(where, "holds a part without a string `type`");
  if (text_of(*type) != "text") {
    refuse(where, fmt::format("holds a part of the type {}: modality not supported, only text is",
                              quote(text_of(*type), 40)));
  }
  const json::value* text = part.as_object().if_contains("text");
  if (text == nullptr || !text->is_string()) refuse(where, "holds a text part without `text`");
  return text_of(*text);
}

std::string content_of(const json::object& message, size_t i) {
  const json::value* content = message.if_contains("content");
  if (content != nullptr && content->is_string()) return text_of(*content);
  if (content == nullptr || !content->is_array()) {
    refuse(fmt::format("messages[{}].content", i),
           fmt::format("must be a string or a list of parts, found {}",
                       content == nullptr ? "no such field" : kind_of(*content)));
  }
  std::string joined;
  for (const json::value& part : content->as_array()) {
    if (!joined.empty()) joined += '\n';
    joined += part_text(part, i);
  }
  return joined;
}

std::string role_of(const json::object& message, size_t i) {
  const json::value* role = message.if_contains("role");
  constexpr std::array kRoles = {"system", "developer", "user", "assistant"};
  const std::string where = fmt::format("messages[{}].role", i);
  if (role == nullptr || !role->is_string()) refuse(where, "must be a string");
  std::string name = text_of(*role);
  if (std::find(kRoles.begin(), kRoles.end(), name) == kRoles.end()) {
    refuse(where, fmt::format("must be one of system, developer, user, assistant. Given: {}",
                              quote(name, 40)));
  }
  return name;
}

void write_message(JsonWriter& json, const json::value& value, size_t i) {
  if (!value.is_object()) {
    refuse(fmt::format("messages[{}]", i),
           fmt::format("must be an object, found {}", kind_of(value)));
  }
  const json::object& message = value.as_object();
  for (const char* field : {"tool_calls", "tool_call_id", "function_call", "audio"}) {
    const json::value* found = message.if_contains(field);
    if (found != nullptr && !is_empty(*found)) {
      refuse(fmt::format("messages[{}].{}", i, field), "is not supported");
    }
  }
  json.begin_object().member("role", role_of(message, i)).member("content", content_of(message, i));
  if (const json::value* name = message.if_contains("name"); name != nullptr && !name->is_null()) {
    if (!name->is_string()) refuse(fmt::format("messages[{}].name", i), "must be a string");
    json.member("name", text_of(*name));
  }
  json.end_object();
}

Prompt chat_prompt(const json::object& body, const Intake& intake) {
  const json::value* messages = body.if_contains("messages");
  if (messages == nullptr || !messages->is_array() || messages->as_array().empty()) {
    refuse("messages", fmt::format("must be a list of messages that is not empty, found {}",
                                   messages == nullptr ? "no such field" : kind_of(*messages)));
  }
  JsonWriter json;
  json.begin_array();
  size_t i = 0;
  for (const json::value& message : messages->as_array()) write_message(json, message, i++);
  const std::string canonical = json.end_array().take();
  check_bytes(canonical.size(), Api::chat, intake);
  Prompt prompt = render_chat(canonical, intake);
  if (prompt.ids.empty()) refuse("messages", "give an empty prompt");
  return prompt;
}

// ---- prompts

Prompt text_prompt(const json::value& value, const Intake& intake) {
  Prompt prompt;
  prompt.text = text_of(value);
  if (prompt.text.empty()) refuse("prompt", "cannot be empty");
  check_bytes(prompt.text.size(), Api::completions, intake);
  prompt.ids = intake.tokenizer.encode(prompt.text);
  if (prompt.ids.empty()) refuse("prompt", "cannot be empty");
  return prompt;
}

Prompt ids_prompt(const json::array& list, const Intake& intake) {
  Prompt prompt;
  for (const json::value& item : list) {
    const bool integer = item.is_int64() || item.is_uint64();
    if (!integer) refuse("prompt", fmt::format("holds {}, not a token id", kind_of(item)));
    const int64_t id = item.is_int64() ? item.as_int64() : -1;
    if (id < 0 || id >= intake.limits.vocab) {
      refuse("prompt", fmt::format("holds a token id that is out of vocabulary (0 to {})",
                                   intake.limits.vocab - 1));
    }
    prompt.ids.push_back(static_cast<int32_t>(id));
  }
  if (prompt.ids.empty()) refuse("prompt", "cannot be empty");
  return prompt;
}

std::vector<Prompt> completion_prompts(const json::object& body, const Intake& intake) {
  const json::value* value = body.if_contains("prompt");
  if (value != nullptr && value->is_string()) return {text_prompt(*value, intake)};
  if (value == nullptr || !value->is_array()) {
    refuse("prompt", fmt::format("must be a string, a list of strings, a list of token ids or a "
                                 "list of such lists, found {}",
                                 value == nullptr ? "no such field" : kind_of(*value)));
  }
  const json::array& list = value->as_array();
  if (list.empty()) refuse("prompt", "cannot be empty");
  if (list[0].is_number()) return {ids_prompt(list, intake)};
  if (list.size() > static_cast<size_t>(intake.limits.max_n)) {
    refuse("prompt", fmt::format("holds {} prompts; at most {} are taken in one request",
                                 list.size(), intake.limits.max_n));
  }
  std::vector<Prompt> prompts;
  for (const json::value& item : list) {
    if (item.is_string()) {
      prompts.push_back(text_prompt(item, intake));
    } else if (item.is_array()) {
      prompts.push_back(ids_prompt(item.as_array(), intake));
    } else {
      refuse("prompt", fmt::format("holds {}, not a prompt", kind_of(item)));
    }
  }
  return prompts;
}

}  // namespace

std::string adapter_name_of(const std::string& model, const Intake& intake) {
  return model == intake.served_name || model == intake.model_name ? std::string() : model;
}

Job openai_job(const Asked& asked, Api api, const Intake& intake,
               std::vector<std::string>* unknown) {
  const json::object object = parse_body(asked.body);
  Job job;
  job.api = api;
  job.fields = read_fields(object, api, intake.limits, unknown);
  check_fields(job.fields, api, intake.limits);
  const std::string model = job.fields.model.value_or("");
  job.request.adapter =
      adapter_of(job.fields, api, adapter_name_of(model, intake), asked.bearer, intake.adapters);
  job.model = model.empty() ? intake.served_name : model;
  if (api == Api::chat) {
    job.prompts.push_back(chat_prompt(object, intake));
  } else {
    job.prompts = completion_prompts(object, intake);
  }
  for (const Prompt& prompt : job.prompts) job.input_characters += count_characters(prompt.text);
  job.answers_per_prompt = job.fields.n.value_or(1);
  settle_length(job, api == Api::chat ? 0 : kCompletionTokens, intake.limits);
  settle_request(job, intake.limits);
  job.request.prompt_logprobs = job.fields.echo && job.fields.alternatives.has_value();
  return job;
}

}  // namespace lorry
