// The refusals of the API: one table from what is wrong to the status and words of each dialect.
#pragma once
#include <string>
#include <string_view>

#include "lorry/error.h"
#include "serve/http.h"

namespace lorry {

enum class Dialect { lorax, openai };

// The routes below /v1 speak OpenAI's dialect, all others LoRAX's.
Dialect dialect_of(std::string_view path);

enum class Problem {
  bad_value,        // a field, or a combination of fields
  bad_json,         // not JSON at all
  too_long,         // more tokens than fit
  unknown_adapter,  // no adapter or model of that name
  bad_adapter,      // it exists and cannot be used
  chat_template,    // the model's template refused the messages
  no_key,           // none, or a wrong one
  not_admin,        // a key that may not do this
  foreign_host,
  unknown_path,
  method,
  timeout,
  too_large,
  uri_too_long,
  content_type,
  expectation,
  head_too_large,
  bad_http,
  overloaded,
  late,  // its time in the queue ran out
  unavailable,
  unhealthy,     // of /health and its like
  no_such_task,  // nothing that a causal language model does
  failed,        // inside, while generating
};

// Thrown by the parsing of requests; other code throws Error.
class RequestError : public Error {
 public:
  // `param`: the field, where one is to blame.
  RequestError(Problem problem, const std::string& message, std::string param = {})
      : Error(Code::invalid_argument, message), problem_(problem), param_(std::move(param)) {}
  Problem problem() const { return problem_; }
  const std::string& param() const { return param_; }

 private:
  Problem problem_;
  std::string param_;
};

// Where an Error comes from decides what its code means to a client.
enum class Stage { parsing, rendering, generating, loading };

struct ApiError {
  Problem problem = Problem::failed;
  std::string message;
  std::string param;
  int retry_after = 0;  // seconds; 0: as long as is usual for the problem
};

// Of any exception type that a handler may see.
ApiError to_api_error(const std::exception& error, Stage stage);

int status_of(const ApiError& error, Dialect dialect);
// Value of the `err` label of lorax_request_failure, LoRAX's error_type.
std::string_view type_of(Problem problem);
// The JSON object of the error, as it stands in a body or in a stream's event.
std::string error_json(const ApiError& error, Dialect dialect);
HttpResponse error_response(const ApiError& error, Dialect dialect);
// For what the HTTP layer refuses.
HttpResponse http_refusal(int status, std::string_view message, std::string_view path);

}  // namespace lorry
