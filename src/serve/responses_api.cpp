#include "serve/responses_api.h"

#include <boost/json/serialize.hpp>

#include "serve/adapter_choice.h"
#include "serve/chat_request.h"
#include "serve/errors.h"
#include "serve/json_writer.h"
#include "serve/openai_api.h"
#include "serve/request_json.h"
#include "serve/responses_input.h"

namespace lorry {

namespace {

// Members of the response that repeat what was asked for, or say that it was not there to be asked.
std::string echo_of(const json::object& body, const Fields& fields) {
  JsonWriter json;
  const auto given = [&](std::string_view name, std::string_view otherwise) {
    const json::value* value = member(body, name);
    json.key(name).raw(value == nullptr ? std::string(otherwise) : json::serialize(*value));
  };
  json.begin_object();
  given("instructions", "null");
  given("max_output_tokens", "null");
  given("tools", "[]");
  given("tool_choice", "\"auto\"");
  given("user", "null");
  given("top_logprobs", "0");
  json.member("parallel_tool_calls", fields.parallel_tool_calls);
  json.member("temperature", fields.temperature.value_or(1.0));
  json.member("top_p", fields.top_p.value_or(1.0));
  const json::value* text = member(body, "text");
  const json::value* format =
      text == nullptr || !text->is_object() ? nullptr : member(text->as_object(), "format");
  json.key("text").begin_object().key("format");
  json.raw(format == nullptr ? R"({"type":"text"})" : json::serialize(*format)).end_object();
  json.member("background", false).member("store", false).member("truncation", "disabled");
  json.member("service_tier", "default").key("metadata").begin_object().end_object();
  for (const char* name : {"previous_response_id", "max_tool_calls", "prompt"}) {
    json.key(name).null();
  }
  json.key("reasoning").begin_object().key("effort").null().key("summary").null().end_object();
  const std::string all = json.end_object().take();
  return all.substr(1, all.size() - 2);
}

Prompt prompt_of(const json::object& chat, const ToolRequest& tools, const Intake& intake) {
  try {
    return chat_prompt(chat, tools, intake);
  } catch (const RequestError& e) {
    if (!e.param().starts_with("messages")) throw;
    throw RequestError(e.problem(), e.what(), "input");
  }
}

}  // namespace

Job response_job(const Asked& asked, const Intake& intake, std::vector<std::string>* unknown) {
  const json::object object = parse_body(asked.body);
  Job job;
  job.api = Api::responses;
  job.fields = read_fields(object, job.api, intake.limits, unknown);
  check_fields(job.fields, job.api, intake.limits);
  const std::string model = job.fields.model.value_or("");
  job.request.adapter = adapter_of(job.fields, job.api, adapter_name_of(model, intake),
                                   asked.bearer, intake.adapters);
  job.model = model.empty() ? intake.served_name : model;
  const json::object chat = chat_of_response(object);
  const ToolRequest tools = read_tools(chat, job.fields.parallel_tool_calls);
  add_tools(job, tools, intake);
  job.prompts.push_back(prompt_of(chat, tools, intake));
  job.input_characters = count_characters(job.prompts.back().text);
  job.echo = echo_of(object, job.fields);
  settle_length(job, 0, intake.limits);
  settle_request(job, intake);
  return job;
}

}  // namespace lorry
