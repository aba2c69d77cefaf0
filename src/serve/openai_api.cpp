#include "serve/openai_api.h"

#include <algorithm>

#include "base/error.h"
#include "serve/adapter_choice.h"
#include "serve/chat_request.h"
#include "serve/errors.h"
#include "serve/json_writer.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

// OpenAI's default of max_tokens on completions.
constexpr int64_t kCompletionTokens = 16;

Prompt text_prompt(const json::value& value, const Intake& intake) {
  Prompt prompt;
  prompt.text = text_of(value);
  if (prompt.text.empty()) refuse_field("prompt", "cannot be empty");
  check_bytes(prompt.text.size(), Api::completions, intake);
  prompt.ids = intake.tokenizer.encode(prompt.text);
  if (prompt.ids.empty()) refuse_field("prompt", "cannot be empty");
  return prompt;
}

Prompt ids_prompt(const json::array& list, const Intake& intake) {
  Prompt prompt;
  for (const json::value& item : list) {
    const bool integer = item.is_int64() || item.is_uint64();
    if (!integer) refuse_field("prompt", fmt::format("holds {}, not a token id", kind_of(item)));
    const int64_t id = item.is_int64() ? item.as_int64() : -1;
    if (id < 0 || id >= intake.limits.vocab) {
      refuse_field("prompt", fmt::format("holds a token id that is out of vocabulary (0 to {})",
                                         intake.limits.vocab - 1));
    }
    prompt.ids.push_back(static_cast<int32_t>(id));
  }
  if (prompt.ids.empty()) refuse_field("prompt", "cannot be empty");
  return prompt;
}

std::vector<Prompt> completion_prompts(const json::object& body, const Intake& intake) {
  const json::value* value = body.if_contains("prompt");
  if (value != nullptr && value->is_string()) return {text_prompt(*value, intake)};
  if (value == nullptr || !value->is_array()) {
    refuse_field("prompt",
                 fmt::format("must be a string, a list of strings, a list of token ids or a "
                             "list of such lists, found {}",
                             value == nullptr ? "no such field" : kind_of(*value)));
  }
  const json::array& list = value->as_array();
  if (list.empty()) refuse_field("prompt", "cannot be empty");
  if (list[0].is_number()) return {ids_prompt(list, intake)};
  if (list.size() > static_cast<size_t>(intake.limits.max_n)) {
    refuse_field("prompt", fmt::format("holds {} prompts; at most {} are taken in one request",
                                       list.size(), intake.limits.max_n));
  }
  std::vector<Prompt> prompts;
  for (const json::value& item : list) {
    if (item.is_string()) {
      prompts.push_back(text_prompt(item, intake));
    } else if (item.is_array()) {
      prompts.push_back(ids_prompt(item.as_array(), intake));
    } else {
      refuse_field("prompt", fmt::format("holds {}, not a prompt", kind_of(item)));
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
    const ToolRequest tools = read_tools(object, job.fields.parallel_tool_calls);
    add_tools(job, tools, intake);
    job.prompts.push_back(chat_prompt(object, tools, intake));
  } else {
    job.prompts = completion_prompts(object, intake);
  }
  for (const Prompt& prompt : job.prompts) job.input_characters += count_characters(prompt.text);
  const int64_t n = job.fields.n.value_or(1);
  job.answers_per_prompt = std::max(n, job.fields.best_of.value_or(n));
  settle_length(job, api == Api::chat ? 0 : kCompletionTokens, intake.limits);
  settle_request(job, intake);
  job.request.prompt_logprobs = job.fields.echo && job.fields.alternatives.has_value();
  return job;
}

}  // namespace lorry
