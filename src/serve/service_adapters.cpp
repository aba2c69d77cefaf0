// The routes of Service that manage adapters: vLLM's load and unload, and the list.
#include "adapters/names.h"
#include "base/error.h"
#include "base/files.h"
#include "serve/errors.h"
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

std::string text_field(const json::object& body, const char* name) {
  const json::value* value = body.if_contains(name);
  if (value == nullptr || !value->is_string() || value->as_string().empty()) {
    throw RequestError(Problem::bad_value, fmt::format("`{}` must be a string", name), name);
  }
  return {value->as_string().data(), value->as_string().size()};
}

bool flag_field(const json::object& body, const char* name) {
  const json::value* value = body.if_contains(name);
  if (value == nullptr || value->is_null()) return false;
  if (!value->is_bool()) {
    throw RequestError(Problem::bad_value, fmt::format("`{}` must be true or false", name), name);
  }
  return value->as_bool();
}

// A client may name what is below the adapter root and nothing else on this machine.
std::string folder_in_root(const std::string& root, const std::string& path) {
  if (root.empty()) {
    throw RequestError(Problem::bad_value,
                       "this server loads no adapters by path: it was started without "
                       "--adapter-root",
                       "lora_path");
  }
  try {
    return folder_below(root, path);
  } catch (const Error& e) {
    throw RequestError(e.code() == Code::not_found ? Problem::unknown_adapter : Problem::bad_value,
                       e.what(), "lora_path");
  }
}

void write_entry(JsonWriter& json, const AdapterSnapshot::Entry& e) {
  json.begin_object().member("id", e.name).member("object", "adapter");
  json.member("source", to_string(e.source)).member("state", to_string(e.state));
  json.member("registered", e.registered).member("requests", e.claims).member("hits", e.hits);
  json.key("idle_seconds");
  e.idle_seconds < 0 ? json.null() : json.value(e.idle_seconds);
  json.key("digest").string_or_null(e.digest.empty() ? "" : "sha256:" + e.digest);
  json.member("bytes", static_cast<int64_t>(e.bytes)).member("rank", int64_t{e.max_rank});
  json.member("sites", static_cast<int64_t>(e.sites));
  json.key("base_model_name_or_path").string_or_null(e.base_model);
  json.key("error").string_or_null(e.error);
  json.end_object();
}

void write_tier(JsonWriter& json, const char* name, const Residency::TierCounts& tier) {
  json.key(name).begin_object();
  json.member("bytes", tier.size).member("used_bytes", tier.used).member("adapters", tier.items);
  json.member("loads", tier.fills).member("evictions", tier.evictions);
  json.end_object();
}

}  // namespace

void Service::adapters(const CallPtr& call) {
  answer_from_worker(call, [this] {
    const AdapterSnapshot snapshot = backend_.adapters();
    JsonWriter json;
    json.begin_object().member("object", "list").key("data").begin_array();
    for (const AdapterSnapshot::Entry& entry : snapshot.entries) write_entry(json, entry);
    json.end_array().key("memory").begin_object();
    write_tier(json, "device", snapshot.memory.device);
    write_tier(json, "host", snapshot.memory.host);
    json.member("active", snapshot.memory.active).member("waits", snapshot.memory.waits);
    json.member("rotations", snapshot.memory.rotations);
    json.end_object().end_object();
    HttpResponse response;
    response.content_type = "application/json";
    response.body = json.take();
    return response;
  });
}

// The answer comes when the adapter is there, or is known to be none. Nobody waits for it but the
// client that asked.
void Service::load_adapter(const CallPtr& call) {
  const json::object body = parse_body(call->request.body);
  AdapterLoad load;
  load.name = text_field(body, "lora_name");
  check_adapter_name(load.name);
  load.path = folder_in_root(options_.adapter_root, text_field(body, "lora_path"));
  load.in_place = flag_field(body, "load_inplace");
  if (load.name == intake_.served_name || load.name == intake_.model_name) {
    throw RequestError(Problem::bad_value, "`lora_name` is the base model's name", "lora_name");
  }
  const std::string name = load.name;
  backend_.load_adapter(std::move(load), [this, call, name](const Error* error) {
    auto response = std::make_shared<HttpResponse>(
        error == nullptr
            ? text_response(fmt::format("Success: LoRA adapter '{}' added successfully.", name))
            : error_response(to_api_error(*error, Stage::loading), call->dialect));
    call->responder->post([this, call, response] { reply(*call, std::move(*response)); });
  });
}

void Service::unload_adapter(const CallPtr& call) {
  answer_from_worker(call, [this, call] {
    const std::string name = text_field(parse_body(call->request.body), "lora_name");
    try {
      backend_.unload_adapter(name);
    } catch (const Error& e) {
      const Problem problem =
          e.code() == Code::not_found ? Problem::unknown_adapter : Problem::bad_value;
      throw RequestError(problem, e.what(), "lora_name");
    }
    return text_response(fmt::format("Success: LoRA adapter '{}' removed successfully.", name));
  });
}

}  // namespace lorry
