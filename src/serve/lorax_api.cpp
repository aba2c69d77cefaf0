#include "serve/lorax_api.h"

#include "base/error.h"
#include "serve/adapter_choice.h"
#include "serve/errors.h"
#include "serve/json_writer.h"
#include "serve/request_json.h"

namespace lorry {

namespace {

std::string inputs_of(const json::object& body) {
  const json::value* inputs = body.if_contains("inputs");
  if (inputs == nullptr || !inputs->is_string()) {
    throw RequestError(Problem::bad_value,
                       fmt::format("`inputs` must be a string, found {}",
                                   inputs == nullptr ? "no such field" : kind_of(*inputs)),
                       "inputs");
  }
  return {inputs->as_string().data(), inputs->as_string().size()};
}

bool stream_of(const json::object& body) {
  const json::value* stream = body.if_contains("stream");
  if (stream == nullptr || stream->is_null()) return false;
  if (!stream->is_bool()) {
    throw RequestError(Problem::bad_value,
                       fmt::format("`stream` must be true or false, found {}", kind_of(*stream)),
                       "stream");
  }
  return stream->as_bool();
}

Fields parameters_of(const json::object& body, bool stream, const Intake& intake,
                     std::vector<std::string>* unknown) {
  const json::value* parameters = body.if_contains("parameters");
  Fields fields;
  if (parameters != nullptr && !parameters->is_null()) {
    if (!parameters->is_object()) {
      throw RequestError(
          Problem::bad_value,
          fmt::format("`parameters` must be an object, found {}", kind_of(*parameters)),
          "parameters");
    }
    fields = read_fields(parameters->as_object(), Api::lorax, intake.limits, unknown);
  }
  fields.stream = stream;
  check_fields(fields, Api::lorax, intake.limits);
  return fields;
}

Prompt prompt_of(const std::string& inputs, const Fields& fields, const Intake& intake) {
  if (!fields.truncate) check_bytes(inputs.size(), Api::lorax, intake);
  Prompt prompt;
  if (fields.apply_chat_template) {
    JsonWriter json;
    json.begin_array().begin_object().member("role", "user").member("content", inputs);
    prompt = render_chat(json.end_object().end_array().take(), intake);
  } else {
    prompt.ids = intake.tokenizer.encode(inputs);
  }
  prompt.text = inputs;
  if (fields.truncate && prompt.ids.size() > static_cast<size_t>(*fields.truncate)) {
    prompt.ids.erase(prompt.ids.begin(), prompt.ids.end() - *fields.truncate);
  }
  return prompt;
}

}  // namespace

Job lorax_job(const Asked& asked, LoraxForm form, const Intake& intake,
              std::vector<std::string>* unknown) {
  const json::object object = parse_body(asked.body);
  for (const auto& member : object) {
    const std::string_view key(member.key().data(), member.key().size());
    if (key != "inputs" && key != "parameters" && key != "stream") unknown->emplace_back(key);
  }
  Job job;
  job.api = Api::lorax;
  const bool stream =
      form == LoraxForm::generate_stream || (form == LoraxForm::compat && stream_of(object));
  job.fields = parameters_of(object, stream, intake, unknown);
  const std::string inputs = inputs_of(object);
  if (inputs.empty()) throw RequestError(Problem::bad_value, "`inputs` cannot be empty", "inputs");
  job.prompts.push_back(prompt_of(inputs, job.fields, intake));
  if (job.prompts[0].ids.empty()) {
    throw RequestError(Problem::bad_value, "`inputs` cannot be empty", "inputs");
  }
  job.input_characters = count_characters(inputs);
  job.answers_per_prompt = job.fields.best_of.value_or(1);
  job.as_array = form == LoraxForm::compat;
  job.model = intake.served_name;
  settle_length(job, 0, intake.limits);
  settle_request(job, intake);
  job.request.adapter = adapter_of(job.fields, Api::lorax, job.fields.adapter_id.value_or(""),
                                   asked.bearer, intake.adapters);
  job.request.prompt_logprobs = job.fields.decoder_input_details;
  return job;
}

}  // namespace lorry
