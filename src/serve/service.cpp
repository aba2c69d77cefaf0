#include "serve/service.h"

#include <algorithm>
#include <ctime>

#include "base/error.h"
#include "base/text.h"
#include "serve/errors.h"
#include "serve/http_head.h"
#include "serve/openai_api.h"

namespace lorry {

namespace {

constexpr size_t kWorkerQueue = 1024;
constexpr size_t kLoggedNames = 200;
constexpr size_t kGrammarBytes = size_t{64} << 20;  // of compiled grammars that are kept

bool printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

// The client's id of a request where it is fit for a header and a log, else one of ours.
std::string request_id(const HttpRequest& request) {
  const std::string_view given = request.header("x-request-id");
  return !given.empty() && given.size() <= 128 && printable(given) ? std::string(given)
                                                                   : random_id();
}

Asked asked_by(const HttpRequest& request) {
  constexpr std::string_view kBearer = "bearer ";
  Asked asked{request.body, {}};
  const std::string_view given = request.header("authorization");
  if (given.size() > kBearer.size() && lower_case(given.substr(0, kBearer.size())) == kBearer) {
    asked.bearer = given.substr(kBearer.size());
  }
  return asked;
}

bool is_json(std::string_view content_type) {
  std::string type = lower_case(content_type.substr(0, content_type.find(';')));
  while (!type.empty() && type.back() == ' ') type.pop_back();
  return type == "application/json" ||
         (type.starts_with("application/") && type.ends_with("+json"));
}

Limits limits_of(const ServerOptions& options, const ModelInfo& model) {
  Limits limits;
  limits.max_total_tokens = model.max_total_tokens;
  limits.max_input_length = options.max_input_length > 0
                                ? std::min(options.max_input_length, model.max_total_tokens - 1)
                                : model.max_total_tokens - 1;
  limits.max_best_of = options.max_best_of;
  // More than may be in work at once could never be taken.
  limits.max_n = std::min(limits.max_n, options.max_concurrent_requests);
  limits.max_stop_sequences = options.max_stop_sequences;
  limits.vocab = model.spec.vocab;
  return limits;
}

std::optional<ChatTemplate> template_of(const Tokenizer& tokenizer) {
  if (tokenizer.chat_template().empty()) return std::nullopt;
  return std::optional<ChatTemplate>(std::in_place, tokenizer, tokenizer.chat_template());
}

bool matches(std::string_view pattern, std::string_view path) {
  if (pattern.size() > 1 && pattern.ends_with('/')) {
    return path.starts_with(pattern) && path.size() > pattern.size();
  }
  return path == pattern;
}

}  // namespace

Service::Service(ServerOptions options, Backend& backend, Log& log)
    : options_(std::move(options)),
      backend_(backend),
      log_(log),
      chat_(template_of(backend.tokenizer())),
      grammars_(backend.tokenizer(), kGrammarBytes),
      intake_{
          .tokenizer = backend.tokenizer(),
          .chat = chat_ ? &*chat_ : nullptr,
          .limits = limits_of(options_, backend.info()),
          .adapters = options_.adapters,
          .served_name = options_.served_name.empty() ? backend.info().name : options_.served_name,
          .model_name = backend.info().name,
          .grammars = grammars_},
      metrics_(intake_.served_name, options_.max_concurrent_requests),
      started_(std::time(nullptr)),
      workers_(options_.validation_workers, kWorkerQueue) {}

const std::vector<Service::Route>& Service::routes() {
  static const std::vector<Route> table = {
      {"GET", "/", &Service::home},
      {"POST", "/", &Service::compat},
      {"POST", "/invocations", &Service::compat},
      {"POST", "/generate", &Service::generate},
      {"POST", "/generate_stream", &Service::generate_stream},
      {"POST", "/v1/completions", &Service::completions},
      {"POST", "/v1/chat/completions", &Service::chat_completions},
      {"GET", "/v1/models", &Service::models},
      {"GET", "/v1/models/", &Service::model},
      {"GET", "/v1/adapters", &Service::adapters},
      {"POST", "/v1/load_lora_adapter", &Service::load_adapter},
      {"POST", "/v1/unload_lora_adapter", &Service::unload_adapter},
      {"POST", "/tokenize", &Service::tokenize},
      {"GET", "/health", &Service::health},
      {"GET", "/ping", &Service::health},
      {"GET", "/info", &Service::info},
      {"GET", "/version", &Service::version},
      {"GET", "/metrics", &Service::metrics},
  };
  return table;
}

// A page of another site, in a browser on this machine, must not reach a server that is meant for
// this machine (DNS rebinding).
std::optional<ApiError> Service::refuse_at_the_door(const HttpRequest& request) const {
  if (!loopback_only_.load()) return std::nullopt;
  const auto foreign = [&](std::string_view host) {
    return !host.empty() && !is_loopback_host(host) &&
           std::find(options_.allowed_hosts.begin(), options_.allowed_hosts.end(), host) ==
               options_.allowed_hosts.end();
  };
  for (const char* header : {"host", "origin"}) {
    if (foreign(request.header(header))) {
      return ApiError{Problem::foreign_host,
                      fmt::format("this server answers only on this machine; the {} header names "
                                  "another host",
                                  header),
                      {}};
    }
  }
  return std::nullopt;
}

void Service::handle(HttpRequest request, std::shared_ptr<Responder> responder) {
  auto call = std::make_shared<Call>();
  call->id = request_id(request);
  call->dialect = dialect_of(request.path);
  call->request = std::move(request);
  call->responder = std::move(responder);
  try {
    dispatch(call);
  } catch (const std::exception& e) {
    refuse(*call, to_api_error(e, Stage::parsing));
  }
}

void Service::dispatch(const CallPtr& call) {
  const HttpRequest& request = call->request;
  if (const auto error = refuse_at_the_door(request)) return refuse(*call, *error);
  const std::string_view method =
      request.method == "HEAD" ? "GET" : std::string_view(request.method);
  std::string allowed;
  for (const Route& route : routes()) {
    if (!matches(route.path, request.path)) continue;
    if (route.method != method) {
      allowed += (allowed.empty() ? "" : ", ") + std::string(route.method);
      continue;
    }
    if (method == "POST" && !is_json(request.header("content-type"))) {
      return refuse(*call,
                    {Problem::content_type, "the Content-Type must be application/json", {}});
    }
    return (this->*route.handler)(call);
  }
  if (allowed.empty()) {
    return refuse(*call, {Problem::unknown_path,
                          fmt::format("there is nothing at {}", quote(request.path, 80)),
                          {}});
  }
  HttpResponse response =
      error_response({Problem::method,
                      fmt::format("{} is answered to {} only", quote(request.path, 80), allowed),
                      {}},
                     call->dialect);
  response.headers.emplace_back("allow", allowed);
  reply(*call, std::move(response));
}

void Service::reply(const Call& call, HttpResponse response) const {
  response.headers.emplace_back("x-request-id", call.id);
  call.responder->respond(std::move(response));
}

void Service::refuse(const Call& call, const ApiError& error) const {
  if (call.responder->begun()) return;
  reply(call, error_response(error, call.dialect));
}

void Service::note_unknown(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    metrics_.unknown_field();
    std::lock_guard lock(unknown_mutex_);
    if (unknown_names_.size() >= kLoggedNames || !unknown_names_.insert(name).second) continue;
    log_.info("requests have the field {}, which is not known and ignored", quote(name, 60));
  }
}

void Service::answer_from_worker(const CallPtr& call, std::function<HttpResponse()> work) {
  const bool accepted = workers_.submit([this, call, run = std::move(work)] {
    auto response = std::make_shared<HttpResponse>();
    try {
      *response = run();
    } catch (const std::exception& e) {
      *response = error_response(to_api_error(e, Stage::parsing), call->dialect);
    }
    call->responder->post([this, call, response] { reply(*call, std::move(*response)); });
  });
  if (!accepted) refuse(*call, {Problem::overloaded, "Model is overloaded", {}});
}

// ---- generation

void Service::start_generation(const CallPtr& call, MakeJob make,
                               std::shared_ptr<Presenter> presenter) {
  metrics_.received();
  const auto refuse_with = [&](const ApiError& error) {
    metrics_.failed(type_of(error.problem));
    refuse(*call, error);
  };
  if (draining_.load()) {
    return refuse_with({Problem::unavailable, "the server is shutting down", {}});
  }
  const size_t in_flight = live_.size() + workers_.waiting();
  const bool full = in_flight >= static_cast<size_t>(options_.max_concurrent_requests);
  if (full || !workers_.submit([this, call, make = std::move(make), presenter] {
        prepare(call, make, presenter);
      })) {
    refuse_with({Problem::overloaded, "Model is overloaded", {}});
  }
}

// On a worker.
void Service::prepare(const CallPtr& call, const MakeJob& make,
                      const std::shared_ptr<Presenter>& presenter) {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::string> unknown;
  try {
    auto job = std::make_shared<Job>(make(*call, &unknown));
    const auto took = std::chrono::steady_clock::now() - begin;
    job->received = call->request.received;
    job->validation_seconds = std::chrono::duration<double>(took).count();
    job->id = call->id;
    job->created = std::time(nullptr);
    metrics_.validated(took);
    call->responder->post([this, call, job, presenter] {
      std::make_shared<Generation>(
          Generation::Parts{backend_, live_, metrics_, call->responder, presenter}, std::move(*job))
          ->start();
    });
  } catch (const std::exception& e) {
    const ApiError error = to_api_error(e, Stage::parsing);
    metrics_.failed(type_of(error.problem));
    call->responder->post([this, call, error] { refuse(*call, error); });
  }
  note_unknown(unknown);
}

void Service::lorax(const CallPtr& call, LoraxForm form) {
  const auto make = [this, form](const Call& from, std::vector<std::string>* unknown) {
    return lorax_job(asked_by(from.request), form, intake_, unknown);
  };
  start_generation(call, make, lorax_presenter(intake_.tokenizer));
}

void Service::openai(const CallPtr& call, Api api) {
  const auto make = [this, api](const Call& from, std::vector<std::string>* unknown) {
    return openai_job(asked_by(from.request), api, intake_, unknown);
  };
  start_generation(call, make, openai_presenter(intake_.tokenizer, api));
}

void Service::generate(const CallPtr& call) { lorax(call, LoraxForm::generate); }
void Service::generate_stream(const CallPtr& call) { lorax(call, LoraxForm::generate_stream); }
void Service::compat(const CallPtr& call) { lorax(call, LoraxForm::compat); }
void Service::completions(const CallPtr& call) { openai(call, Api::completions); }
void Service::chat_completions(const CallPtr& call) { openai(call, Api::chat); }

void Service::stop() {
  workers_.stop();
  live_.detach_all();
}

}  // namespace lorry
