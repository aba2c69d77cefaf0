// The routes of Service that tell about the server and the model.
#include "base/error.h"
#include "serve/errors.h"
#include "serve/http_head.h"
#include "serve/json_writer.h"
#include "serve/service.h"

namespace lorry {

namespace {

HttpResponse text_response(std::string text) {
  HttpResponse response;
  response.content_type = "text/plain; charset=utf-8";
  response.body = std::move(text);
  return response;
}

HttpResponse json_response(JsonWriter& json) {
  HttpResponse response;
  response.content_type = "application/json";
  response.body = json.take();
  return response;
}

}  // namespace

// For programs (web_page.h has what people get): healthy or not, as in LoRAX.
void Service::home(const CallPtr& call) {
  if (!is_healthy()) return refuse(*call, {Problem::unhealthy, "unhealthy", {}});
  reply(*call,
        text_response(fmt::format("Lorry {} serves {}\n", options_.version, intake_.served_name)));
}

void Service::version(const CallPtr& call) {
  JsonWriter json;
  json.begin_object().member("version", options_.version).end_object();
  reply(*call, json_response(json));
}

void Service::docs(const CallPtr& call) {
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.body = docs_page_;
  response.headers.emplace_back("content-security-policy",
                                "default-src 'none'; style-src 'unsafe-inline'");
  reply(*call, std::move(response));
}

void Service::openapi_json(const CallPtr& call) {
  HttpResponse response;
  response.content_type = "application/json";
  response.body = openapi_json_;
  reply(*call, std::move(response));
}

// Names as LoRAX's, but for example_prompts; null where Lorry has no such thing.
void Service::info(const CallPtr& call) {
  const ModelInfo& model = backend_.info();
  JsonWriter json;
  json.begin_object();
  json.member("model_id", model.name).member("model_sha", model.digest);
  json.member("model_dtype", to_string(model.dtype)).member("model_device_type", model.device);
  json.member("model_pipeline_tag", "text-generation");
  json.member("max_concurrent_requests", options_.max_concurrent_requests);
  json.member("max_best_of", options_.max_best_of);
  json.member("max_stop_sequences", options_.max_stop_sequences);
  json.member("max_input_length", intake_.limits.max_input_length);
  json.member("max_total_tokens", intake_.limits.max_total_tokens);
  json.key("waiting_served_ratio").null();
  json.member("max_batch_total_tokens", backend_.stats().kv_blocks * kBlockTokens);
  json.key("max_waiting_tokens").null();
  json.member("validation_workers", options_.validation_workers);
  json.member("eager_prefill", false);
  json.member("version", options_.version);
  json.key("sha").null().key("docker_label").null().key("request_logger_url").null();
  json.key("example_prompts").begin_array();
  for (const std::string& prompt : options_.example_prompts) json.value(prompt);
  json.end_array();
  json.end_object();
  reply(*call, json_response(json));
}

void Service::metrics(const CallPtr& call) {
  HttpResponse response = text_response(metrics_.expose(backend_.stats(), options_.tracing));
  response.content_type = "text/plain; version=0.0.4; charset=utf-8";
  reply(*call, std::move(response));
}

// The base model first, then the adapters that can be asked for by name.
std::vector<std::string> Service::served_models() const {
  std::vector<std::string> names = {intake_.served_name};
  for (const AdapterSnapshot::Entry& entry : backend_.adapters().entries) {
    const bool loaded = entry.state == AdapterState::host || entry.state == AdapterState::device;
    if (entry.registered || loaded) names.push_back(entry.name);
  }
  return names;
}

void Service::write_model(JsonWriter& json, const std::string& id) const {
  const bool base = id == intake_.served_name;
  json.begin_object().member("id", id).member("object", "model").member("created", started_);
  json.member("owned_by", "lorry").member("root", base ? intake_.model_name : id);
  json.key("parent").string_or_null(base ? "" : intake_.served_name);
  json.member("max_model_len", intake_.limits.max_total_tokens).end_object();
}

void Service::models(const CallPtr& call) {
  answer_from_worker(call, [this] {
    JsonWriter json;
    json.begin_object().member("object", "list").key("data").begin_array();
    for (const std::string& name : served_models()) write_model(json, name);
    json.end_array().end_object();
    return json_response(json);
  });
}

void Service::model(const CallPtr& call) {
  answer_from_worker(call, [this, call] {
    std::string name;
    constexpr std::string_view kPrefix = "/v1/models/";
    const bool decoded =
        percent_decode(std::string_view(call->request.path).substr(kPrefix.size()), &name);
    const std::vector<std::string> served = served_models();
    if (!decoded || std::find(served.begin(), served.end(), name) == served.end()) {
      throw RequestError(Problem::unknown_adapter,
                         fmt::format("the model {} does not exist", quote(name, 60)), "model");
    }
    JsonWriter json;
    write_model(json, name);
    return json_response(json);
  });
}

}  // namespace lorry
