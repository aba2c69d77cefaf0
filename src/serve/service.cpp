#include "serve/service.h"

#include <algorithm>
#include <ctime>

#include <boost/json/serialize.hpp>

#include "base/error.h"
#include "base/text.h"
#include "serve/errors.h"
#include "serve/http_head.h"
#include "serve/openai_api.h"
#include "serve/responses_api.h"
#include "serve/tagged_responder.h"
#include "serve/web_page.h"

namespace lorry {

namespace {

constexpr size_t kWorkerQueue = 1024;
constexpr size_t kLoggedNames = 200;
constexpr size_t kGrammarBytes = size_t{64} << 20;  // of compiled grammars that are kept

bool printable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

std::string nothing_at(const std::string& path) {
  if (path.starts_with("/v1/responses/") || path.starts_with("/v1/conversations")) {
    return "nothing is kept of responses here: POST /v1/responses answers at once, and takes the "
           "whole conversation as `input`";
  }
  return fmt::format("there is nothing at {}", quote(path, 80));
}

// The client's id of a request where it is fit for a header and a log, else one of ours.
std::string request_id(const HttpRequest& request) {
  const std::string_view given = request.header("x-request-id");
  return !given.empty() && given.size() <= 128 && printable(given) ? std::string(given)
                                                                   : random_id();
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
  if (options.max_requests_per_key > 0) {
    limits.max_n = std::min(limits.max_n, options.max_requests_per_key);
  }
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

Service::Service(const ServerOptions& options, const Door& door, Backend& backend, Log& log)
    : options_(options),
      door_(door),
      backend_(backend),
      log_(log),
      chat_(template_of(backend.tokenizer())),
      grammars_(backend.tokenizer(), kGrammarBytes),
      intake_{
          .tokenizer = backend.tokenizer(),
          .chat = chat_ ? &*chat_ : nullptr,
          .limits = limits_of(options_, backend.info()),
          .adapters = options_.adapters,
          .watermark = options_.watermark,
          .served_name = options_.served_name.empty() ? backend.info().name : options_.served_name,
          .model_name = backend.info().name,
          .grammars = grammars_},
      metrics_(intake_.served_name, options_.max_concurrent_requests),
      started_(std::time(nullptr)),
      workers_(options_.validation_workers, kWorkerQueue) {
  const json::object document = openapi_document(intake_.limits, options_.version, route_names());
  openapi_json_ = json::serialize(document);
  docs_page_ = docs_page(document);
}

std::vector<RouteName> Service::route_names() {
  std::vector<RouteName> names;
  for (const Route& route : routes()) names.push_back({route.method, route.path, route.admin});
  return names;
}

const std::vector<Service::Route>& Service::routes() {
  static const std::vector<Route> table = {
      {"GET", "/", &Service::home},
      {"POST", "/", &Service::compat},
      {"POST", "/invocations", &Service::compat},
      {"POST", "/generate", &Service::generate},
      {"POST", "/generate_stream", &Service::generate_stream},
      {"POST", "/v1/completions", &Service::completions},
      {"POST", "/v1/chat/completions", &Service::chat_completions},
      {"POST", "/v1/responses", &Service::responses},
      {"GET", "/v1/models", &Service::models},
      {"GET", "/v1/models/", &Service::model},
      {"GET", "/v1/adapters", &Service::adapters},
      {"POST", "/v1/load_lora_adapter", &Service::load_adapter, true},
      {"POST", "/v1/unload_lora_adapter", &Service::unload_adapter, true},
      {"POST", "/tokenize", &Service::tokenize},
      {"POST", "/detokenize", &Service::detokenize},
      {"POST", "/embed", &Service::no_embeddings},
      {"POST", "/v1/embeddings", &Service::no_embeddings},
      {"POST", "/classify", &Service::no_classes},
      {"POST", "/classify_batch", &Service::no_classes},
      {"GET", "/startup", &Service::startup},
      {"GET", "/health", &Service::health},
      {"GET", "/ping", &Service::health},
      {"GET", "/info", &Service::info},
      {"GET", "/version", &Service::version},
      {"GET", "/metrics", &Service::metrics},
      {"GET", "/docs", &Service::docs},
      {"GET", "/api-doc/openapi.json", &Service::openapi_json},
  };
  return table;
}

void Service::handle(HttpRequest request, std::shared_ptr<Responder> responder) {
  auto call = std::make_shared<Call>();
  call->id = request_id(request);
  call->dialect = dialect_of(request.path);
  call->request = std::move(request);
  Door::Visit visit = door_.visit(call->request);
  visit.headers.emplace_back("x-request-id", call->id);
  call->responder =
      std::make_shared<TaggedResponder>(std::move(responder), std::move(visit.headers));
  call->tenant = std::move(visit.tenant);
  try {
    if (visit.refusal) return refuse(*call, *visit.refusal);
    if (visit.preflight) return reply(*call, std::move(*visit.preflight));
    auto page = options_.web ? web_answer(call->request) : std::nullopt;
    if (page) return reply(*call, std::move(*page));
    dispatch(call);
  } catch (const std::exception& e) {
    refuse(*call, to_api_error(e, Stage::parsing));
  }
}

void Service::dispatch(const CallPtr& call) {
  const HttpRequest& request = call->request;
  const std::string_view method =
      request.method == "HEAD" ? "GET" : std::string_view(request.method);
  std::string allowed;
  for (const Route& route : routes()) {
    if (!matches(route.path, request.path)) continue;
    if (route.method != method) {
      allowed += (allowed.empty() ? "" : ", ") + std::string(route.method);
      continue;
    }
    if (route.admin && !call->tenant->admin()) {
      return refuse(*call, {Problem::not_admin,
                            "this needs an API key with the right of an administrator "
                            "(NAME:KEY:admin)",
                            {}});
    }
    if (method == "POST" && !is_json(request.header("content-type"))) {
      return refuse(*call,
                    {Problem::content_type, "the Content-Type must be application/json", {}});
    }
    return (this->*route.handler)(call);
  }
  if (allowed.empty()) {
    return refuse(*call, {Problem::unknown_path, nothing_at(request.path), {}});
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
  call->ticket = std::make_shared<Ticket>(call->tenant);
  if (!call->ticket->take(1)) {
    return refuse_with({Problem::overloaded, "too many requests of this API key at a time", {}});
  }
  const size_t in_flight = live_.size() + workers_.waiting();
  const bool full = in_flight >= static_cast<size_t>(options_.max_concurrent_requests);
  if (full || !workers_.submit([this, call, make = std::move(make), presenter] {
        prepare(call, make, presenter);
      })) {
    return refuse_with({Problem::overloaded, "Model is overloaded", {}, crowd_.refused()});
  }
  crowd_.admitted();
}

// On a worker.
void Service::prepare(const CallPtr& call, const MakeJob& make,
                      const std::shared_ptr<Presenter>& presenter) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    const std::shared_ptr<Job> job = make_job(*call, make);
    call->request.body = {};  // not for as long as the answer takes
    const auto n_answers = static_cast<int64_t>(job->prompts.size()) * job->answers_per_prompt;
    if (!call->ticket->take(n_answers - 1)) {
      throw RequestError(Problem::overloaded, "too many requests of this API key at a time");
    }
    job->request.tenant = call->tenant->id();
    job->request.cache_salt = call->tenant->salt(job->request.cache_salt);
    const auto took = std::chrono::steady_clock::now() - begin;
    job->received = call->request.received;
    if (options_.max_queue_seconds > 0) {
      job->start_by =
          job->received + std::chrono::duration_cast<std::chrono::nanoseconds>(
                              std::chrono::duration<double>(options_.max_queue_seconds));
    }
    job->validation_seconds = std::chrono::duration<double>(took).count();
    job->id = call->id;
    job->created = std::time(nullptr);
    metrics_.validated(took);
    call->responder->post([this, call, job, presenter] {
      std::make_shared<Generation>(
          Generation::Parts{backend_, live_, metrics_, call->responder, presenter,
                            std::move(call->ticket),
                            [this, call](const Results& results, std::string_view outcome) {
                              tell(*call, results, outcome);
                            }},
          std::move(*job))
          ->start();
    });
  } catch (const std::exception& e) {
    const ApiError error = to_api_error(e, Stage::parsing);
    metrics_.failed(type_of(error.problem));
    call->responder->post([this, call, error] { refuse(*call, error); });
  }
}

// Unknown fields are counted before anyone has an answer.
std::shared_ptr<Job> Service::make_job(const Call& call, const MakeJob& make) {
  std::vector<std::string> unknown;
  try {
    auto job = std::make_shared<Job>(make(call, &unknown));
    note_unknown(unknown);
    return job;
  } catch (...) {
    note_unknown(unknown);
    throw;
  }
}

// With keys the Authorization header holds one of them, and no token of the hub.
Asked Service::asked_by(const Call& call) const {
  return {call.request.body, door_.has_keys() ? std::string_view() : bearer_of(call.request)};
}

void Service::lorax(const CallPtr& call, LoraxForm form) {
  const auto make = [this, form](const Call& from, std::vector<std::string>* unknown) {
    return lorax_job(asked_by(from), form, intake_, unknown);
  };
  start_generation(call, make, lorax_presenter(intake_.tokenizer));
}

void Service::openai(const CallPtr& call, Api api) {
  const auto make = [this, api](const Call& from, std::vector<std::string>* unknown) {
    return openai_job(asked_by(from), api, intake_, unknown);
  };
  start_generation(call, make, openai_presenter(intake_.tokenizer, api));
}

void Service::generate(const CallPtr& call) { lorax(call, LoraxForm::generate); }
void Service::generate_stream(const CallPtr& call) { lorax(call, LoraxForm::generate_stream); }
void Service::compat(const CallPtr& call) { lorax(call, LoraxForm::compat); }
void Service::completions(const CallPtr& call) { openai(call, Api::completions); }
void Service::chat_completions(const CallPtr& call) { openai(call, Api::chat); }

void Service::responses(const CallPtr& call) {
  const auto make = [this](const Call& from, std::vector<std::string>* unknown) {
    return response_job(asked_by(from), intake_, unknown);
  };
  start_generation(call, make, response_presenter(intake_.tokenizer));
}

void Service::stop() {
  workers_.stop();
  live_.detach_all();
}

}  // namespace lorry
