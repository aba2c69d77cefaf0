#include "serve/openapi.h"

#include <cmath>
#include <limits>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <fmt/format.h>

#include "base/error.h"
#include "serve/errors.h"
#include "serve/http_head.h"

namespace lorry {

namespace {

json::object read(std::string_view text) {
  return std::move(parse_json(text, "the description of the API").as_object());
}

std::string text_of(const json::value& value) {
  return {value.as_string().data(), value.as_string().size()};
}

json::object reference(std::string_view schema) {
  return {{"$ref", fmt::format("#/components/schemas/{}", schema)}};
}

json::value number(double x, bool integer) {
  return integer ? json::value(static_cast<int64_t>(x)) : json::value(x);
}

json::object ranged(const char* type, const FieldRange& range, bool integer) {
  json::object schema{{"type", {type, "null"}}};
  schema[range.low_open ? "exclusiveMinimum" : "minimum"] = number(range.low, integer);
  if (std::isfinite(range.high)) {
    schema[range.high_open ? "exclusiveMaximum" : "maximum"] = number(range.high, integer);
  }
  return schema;
}

// The schema of what a rule admits.
struct SchemaOf {
  const FieldRule& rule;
  const json::object& by_hand;

  json::object operator()(bool Fields::*) const { return {{"type", {"boolean", "null"}}}; }
  json::object operator()(std::optional<double> Fields::*) const {
    return ranged("number", rule.range, false);
  }
  json::object operator()(std::optional<int64_t> Fields::*) const {
    return ranged("integer", rule.range, true);
  }
  json::object operator()(std::optional<uint64_t> Fields::*) const {
    return {{"type", {"integer", "null"}},
            {"minimum", 0},
            {"maximum", std::numeric_limits<uint64_t>::max()}};
  }
  json::object operator()(std::optional<std::string> Fields::*) const {
    return {{"type", {"string", "null"}}};
  }
  json::object operator()(FieldReader) const { return known(); }
  json::object operator()(ReadElsewhere) const { return known(); }
  json::object operator()(NotSupported harmless) const {
    json::array nothing{nullptr, false, json::array(), json::object()};
    std::string_view words = harmless.harmless;
    while (!words.empty()) {
      const std::string_view word = words.substr(0, words.find(' '));
      nothing.emplace_back(std::string(word));
      words.remove_prefix(std::min(words.size(), word.size() + 1));
    }
    return {{"enum", std::move(nothing)},
            {"description", "Not supported: refused unless it asks for nothing"}};
  }

  // Of a field that a function reads: anything, where nothing more is said.
  json::object known() const {
    const json::value* found = by_hand.if_contains(fmt::format("field:{}", rule.name));
    return found == nullptr ? json::object() : found->as_object();
  }
};

json::object fields_of(Api api, const json::object& schemas) {
  static const json::object notes = read(openapi_notes());
  json::object properties;
  for (const FieldRule& rule : field_table()) {
    if ((rule.apis & static_cast<unsigned>(api)) == 0) continue;
    json::object schema = std::visit(SchemaOf{rule, schemas}, rule.target);
    const json::value* note = notes.if_contains({rule.name.data(), rule.name.size()});
    if (note != nullptr && !std::holds_alternative<NotSupported>(rule.target)) {
      if (const auto* fallback = note->as_object().if_contains("default")) {
        schema["default"] = *fallback;
      }
      if (const auto* says = note->as_object().if_contains("says")) schema["description"] = *says;
    }
    properties[{rule.name.data(), rule.name.size()}] = std::move(schema);
  }
  return properties;
}

json::object object_schema(json::object properties, json::array required) {
  json::object schema{{"type", "object"}, {"properties", std::move(properties)}};
  if (!required.empty()) schema["required"] = std::move(required);
  return schema;
}

json::object schemas_of(const Limits& limits) {
  json::object schemas = read(openapi_schemas());
  json::object parameters = object_schema(fields_of(Api::lorax, schemas), {});
  parameters["type"] = json::array{"object", "null"};
  json::object generate{{"inputs", {{"type", "string"}, {"minLength", 1}}},
                        {"parameters", std::move(parameters)}};
  schemas["GenerateRequest"] = object_schema(generate, {"inputs"});
  generate["stream"] = {{"type", {"boolean", "null"}}, {"default", false}};
  schemas["CompatRequest"] = object_schema(std::move(generate), {"inputs"});
  schemas["CompletionRequest"] = object_schema(fields_of(Api::completions, schemas), {"prompt"});
  schemas["ChatRequest"] = object_schema(fields_of(Api::chat, schemas), {"messages"});
  schemas["ResponseRequest"] = object_schema(fields_of(Api::responses, schemas), {"input"});
  schemas["TokenId"] = {{"type", "integer"}, {"minimum", 0}, {"maximum", limits.vocab - 1}};
  json::object out;
  for (auto& [name, schema] : schemas) {
    if (!name.starts_with("field:")) out[name] = std::move(schema);
  }
  return out;
}

json::object content(std::string_view type, json::object schema) {
  return {{std::string(type), {{"schema", std::move(schema)}}}};
}

// The answers of a route that are no errors.
json::object good_answer(const json::object& route) {
  json::object answer{{"description", "OK"}};
  json::object types;
  if (const json::value* given = route.if_contains("answer")) {
    const std::string name = text_of(*given);
    if (name.find('/') != std::string::npos) {
      types = content(name, {{"type", "string"}});
    } else if (!name.empty()) {
      types = content("application/json", reference(name));
    }
  }
  if (route.contains("stream")) {
    types["text/event-stream"] = json::object();
  }
  if (!types.empty()) answer["content"] = std::move(types);
  return answer;
}

json::array statuses_of(const RouteName& name, const json::object& route, Dialect dialect) {
  json::array statuses;
  // Of the HTTP layer and the door, on every route.
  for (const int status : {400, 403, 405, 408, 413, 414, 417, 431, 503}) {
    statuses.emplace_back(status);
  }
  if (!route.contains("open")) statuses.emplace_back(401);
  if (name.method == "POST") statuses.emplace_back(415);
  if (route.contains("generates")) {
    for (const int status : {429, 500, 504}) statuses.emplace_back(status);
    if (dialect == Dialect::openai) {
      statuses.emplace_back(404);
    } else {
      for (const int status : {422, 424}) statuses.emplace_back(status);
    }
  }
  if (const json::value* more = route.if_contains("errors")) {
    for (const json::value& status : more->as_array()) statuses.push_back(status);
  }
  return statuses;
}

json::object operation_of(const RouteName& name, const json::object& route) {
  const Dialect dialect = dialect_of(name.path);
  const char* error = dialect == Dialect::lorax ? "LoraxError" : "OpenAiError";
  json::object responses;
  const bool never = !route.contains("answer") && !route.contains("stream");
  if (!never) responses["200"] = good_answer(route);
  for (const json::value& status : statuses_of(name, route, dialect)) {
    const auto code = static_cast<int>(status.as_int64());
    responses[std::to_string(code)] = {{"description", std::string(reason_phrase(code))},
                                       {"content", content("application/json", reference(error))}};
  }
  json::object operation{{"summary", route.at("says")}, {"responses", std::move(responses)}};
  operation["operationId"] = fmt::format("{} {}", name.method, name.path);
  if (const json::value* request = route.if_contains("request")) {
    operation["requestBody"] = {
        {"required", true}, {"content", content("application/json", reference(text_of(*request)))}};
  }
  if (name.path.size() > 1 && name.path.ends_with('/')) {
    operation["parameters"] = json::array{
        {{"name", "name"}, {"in", "path"}, {"required", true}, {"schema", {{"type", "string"}}}}};
  }
  if (route.contains("open")) operation["security"] = json::array{json::object()};
  if (name.admin) operation["description"] = "Needs a key with the right of an administrator.";
  return operation;
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

void write_fields(std::string& page, const json::object& schema) {
  page += "<table><tr><th>field<th>what it takes</tr>";
  for (const auto& [name, field] : schema.at("properties").as_object()) {
    if (name == "parameters") continue;
    page += fmt::format("<tr><td><code>{}</code><td>", escaped({name.data(), name.size()}));
    if (const auto* says = field.as_object().if_contains("description")) {
      page += escaped(text_of(*says)) + "<br>";
    }
    json::object rest = field.as_object();
    rest.erase("description");
    page += fmt::format("<code>{}</code></tr>", escaped(json::serialize(rest)));
  }
  page += "</table>";
  if (const auto* inner = schema.at("properties").as_object().if_contains("parameters")) {
    page += "<p><code>parameters</code> hold</p>";
    write_fields(page, inner->as_object());
  }
}

}  // namespace

json::object openapi_document(const Limits& limits, const std::string& version,
                              std::span<const RouteName> routes) {
  const json::object known = read(openapi_routes());
  json::object paths;
  for (const RouteName& route : routes) {
    std::string path(route.path);
    if (path.size() > 1 && path.ends_with('/')) path += "{name}";
    std::string method = route.method == "GET" ? "get" : "post";
    const json::value* found = known.if_contains(fmt::format("{} {}", route.method, route.path));
    LORRY_CHECK(found != nullptr, "{} {} is not described", route.method, route.path);
    json::value& place = paths[path];
    if (!place.is_object()) place = json::object();
    place.as_object()[method] = operation_of(route, found->as_object());
  }
  return {{"openapi", "3.1.0"},
          {"info",
           {{"title", "Lorry"},
            {"version", version},
            {"description",
             fmt::format("One language model with many adapters. Prompt and answer have at most {} "
                         "tokens together, a prompt at most {}. Fields that are not known are "
                         "ignored; null is as good as absent.",
                         limits.max_total_tokens, limits.max_input_length)}}},
          {"paths", std::move(paths)},
          {"components",
           {{"schemas", schemas_of(limits)},
            {"securitySchemes",
             {{"bearer", {{"type", "http"}, {"scheme", "bearer"}}},
              {"key", {{"type", "apiKey"}, {"in", "header"}, {"name", "X-Api-Key"}}}}}}},
          {"security", {{{"bearer", json::array()}}, {{"key", json::array()}}, json::object()}}};
}

std::string docs_page(const json::object& document) {
  std::string page =
      "<!doctype html><html lang=en><meta charset=utf-8><title>Lorry: API</title><style>"
      "body{font:16px sans-serif;margin:2em;max-width:60em}table{border-collapse:collapse}"
      "td,th{border:1px solid #999;padding:.2em .5em;text-align:left;vertical-align:top}"
      "</style><h1>Lorry</h1>";
  page += fmt::format("<p>{}</p><p><a href=\"/api-doc/openapi.json\">openapi.json</a></p>",
                      escaped(text_of(document.at("info").at("description"))));
  const json::object& schemas = document.at("components").at("schemas").as_object();
  for (const auto& [path, methods] : document.at("paths").as_object()) {
    for (const auto& [method, operation] : methods.as_object()) {
      page += fmt::format("<h2><code>{} {}</code></h2><p>{}</p>", method == "get" ? "GET" : "POST",
                          escaped({path.data(), path.size()}),
                          escaped(text_of(operation.at("summary"))));
      std::string statuses;
      for (const auto& [status, response] : operation.at("responses").as_object()) {
        statuses +=
            fmt::format(" {} {};", std::string(status), text_of(response.at("description")));
      }
      page += fmt::format("<p>Answers:{}</p>", escaped(statuses));
      const json::value* request = operation.as_object().if_contains("requestBody");
      if (request == nullptr) continue;
      const std::string name =
          text_of(request->at("content").at("application/json").at("schema").at("$ref"));
      write_fields(page, schemas.at(name.substr(name.rfind('/') + 1)).as_object());
    }
  }
  return page + "</html>\n";
}

}  // namespace lorry
