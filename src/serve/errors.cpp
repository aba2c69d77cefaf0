#include "serve/errors.h"

#include <array>
#include <utility>

#include "base/error.h"
#include "serve/json_writer.h"

namespace lorry {

namespace {

struct Row {
  Problem problem;
  int lorax_status;
  std::string_view lorax_type;
  std::string_view lorax_prefix;
  int openai_status;
  std::string_view openai_type;
  std::string_view openai_code;  // empty: null
};

constexpr std::string_view kInput = "Input validation error: ";
constexpr std::string_view kGeneration = "Request failed during generation: ";
constexpr std::string_view kInvalid = "invalid_request_error";

// In the order of Problem.
constexpr std::array kRows = {
    Row{Problem::bad_value, 422, "validation", kInput, 400, kInvalid, ""},
    Row{Problem::bad_json, 400, "validation", kInput, 400, kInvalid, ""},
    Row{Problem::too_long, 422, "validation", kInput, 400, kInvalid, "context_length_exceeded"},
    Row{Problem::unknown_adapter, 424, "generation", kGeneration, 404, kInvalid, "model_not_found"},
    Row{Problem::bad_adapter, 424, "generation", kGeneration, 400, kInvalid, ""},
    Row{Problem::chat_template, 422, "template_error", "Template error: ", 400, kInvalid, ""},
    Row{Problem::no_key, 401, "authentication_error", "", 401, "authentication_error",
        "invalid_api_key"},
    Row{Problem::not_admin, 403, "permission_error", "", 403, "permission_error", ""},
    Row{Problem::foreign_host, 403, "forbidden", "", 403, "permission_error", ""},
    Row{Problem::unknown_path, 404, "not_found", "", 404, kInvalid, "unknown_url"},
    Row{Problem::method, 405, "method_not_allowed", "", 405, kInvalid, ""},
    Row{Problem::timeout, 408, "timeout", "", 408, kInvalid, ""},
    Row{Problem::too_large, 413, "validation", "", 413, kInvalid, ""},
    Row{Problem::uri_too_long, 414, "validation", "", 414, kInvalid, ""},
    Row{Problem::content_type, 415, "validation", "", 415, kInvalid, ""},
    Row{Problem::expectation, 417, "validation", "", 417, kInvalid, ""},
    Row{Problem::head_too_large, 431, "validation", "", 431, kInvalid, ""},
    Row{Problem::bad_http, 400, "validation", "", 400, kInvalid, ""},
    Row{Problem::overloaded, 429, "overloaded", "", 429, "rate_limit_exceeded",
        "rate_limit_exceeded"},
    Row{Problem::late, 504, "timeout", "", 504, "timeout", "timeout"},
    Row{Problem::unavailable, 503, "unavailable", "", 503, "service_unavailable", ""},
    Row{Problem::unhealthy, 503, "healthcheck", "", 503, "service_unavailable", ""},
    Row{Problem::no_such_task, 424, "generation", kGeneration, 400, kInvalid, ""},
    Row{Problem::failed, 500, "incomplete_generation", "Incomplete generation: ", 500,
        "server_error", ""},
};

constexpr bool in_order() {
  for (size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].problem != static_cast<Problem>(i)) return false;
  }
  return kRows.size() == static_cast<size_t>(Problem::failed) + 1;
}
static_assert(in_order());

const Row& row_of(Problem problem) { return kRows[static_cast<size_t>(problem)]; }

Problem problem_of(Code code, Stage stage) {
  // Once a request was taken, only its adapter can be too large or out of reach.
  const bool adapter = stage == Stage::generating || stage == Stage::loading;
  switch (code) {
    case Code::over_capacity:
      return adapter ? Problem::bad_adapter : Problem::overloaded;
    case Code::unavailable:
      return adapter ? Problem::bad_adapter : Problem::unavailable;
    case Code::internal:
      return Problem::failed;
    case Code::too_long:
      return Problem::too_long;
    case Code::not_found:
      return adapter ? Problem::unknown_adapter : Problem::bad_value;
    case Code::bad_file:
      return adapter ? Problem::bad_adapter : Problem::bad_json;
    case Code::invalid_argument:
    case Code::unsupported:
      break;
  }
  if (stage == Stage::rendering) return Problem::chat_template;
  return adapter ? Problem::bad_adapter : Problem::bad_value;
}

}  // namespace

Dialect dialect_of(std::string_view path) {
  return path == "/v1" || path.starts_with("/v1/") ? Dialect::openai : Dialect::lorax;
}

ApiError to_api_error(const std::exception& error, Stage stage) {
  if (const auto* e = dynamic_cast<const RequestError*>(&error)) {
    return {e->problem(), e->what(), e->param()};
  }
  if (const auto* e = dynamic_cast<const Error*>(&error)) {
    const Problem problem = problem_of(e->code(), stage);
    // LoRAX's words, which its clients compare.
    if (problem == Problem::overloaded) return {problem, "Model is overloaded", {}};
    return {problem, e->what(), {}};
  }
  return {Problem::failed, error.what(), {}};
}

int status_of(const ApiError& error, Dialect dialect) {
  const Row& row = row_of(error.problem);
  return dialect == Dialect::lorax ? row.lorax_status : row.openai_status;
}

std::string_view type_of(Problem problem) { return row_of(problem).lorax_type; }

std::string error_json(const ApiError& error, Dialect dialect) {
  const Row& row = row_of(error.problem);
  JsonWriter json;
  json.begin_object();
  if (dialect == Dialect::lorax) {
    json.member("error", std::string(row.lorax_prefix) + error.message);
    json.member("error_type", row.lorax_type);
  } else {
    json.key("error").begin_object();
    json.member("message", error.message);
    json.member("type", row.openai_type);
    json.key("param").string_or_null(error.param);
    json.key("code").string_or_null(row.openai_code);
    json.end_object();
  }
  json.end_object();
  return json.take();
}

HttpResponse error_response(const ApiError& error, Dialect dialect) {
  HttpResponse response;
  response.status = status_of(error, dialect);
  response.content_type = "application/json";
  response.body = error_json(error, dialect);
  if (error.problem == Problem::overloaded || error.problem == Problem::late ||
      error.problem == Problem::unavailable || error.problem == Problem::unhealthy) {
    const int usual = error.problem == Problem::overloaded ? 1 : 5;
    response.headers.emplace_back(
        "retry-after", std::to_string(error.retry_after > 0 ? error.retry_after : usual));
  }
  return response;
}

HttpResponse http_refusal(int status, std::string_view message, std::string_view path) {
  const Dialect dialect = dialect_of(path);
  for (const Row& row : kRows) {
    const bool http = row.problem >= Problem::foreign_host && row.problem <= Problem::bad_http;
    if ((http || row.problem == Problem::unavailable) && row.lorax_status == status) {
      return error_response({row.problem, std::string(message), {}}, dialect);
    }
  }
  LORRY_CHECK(false, "no refusal has the status {}", status);
  return {};
}

}  // namespace lorry
