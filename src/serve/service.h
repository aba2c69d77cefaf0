// Service: the routes. Takes every request of the HTTP server, on its connection's strand, and sees
// that it is answered: at once, from a worker, or by a Generation.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "serve/backend.h"
#include "serve/crowd.h"
#include "serve/door.h"
#include "serve/generation.h"
#include "serve/http.h"
#include "serve/intake.h"
#include "serve/json_writer.h"
#include "serve/lorax_api.h"
#include "serve/metrics.h"
#include "serve/openapi.h"
#include "serve/options.h"
#include "serve/worker_pool.h"

namespace lorry {

class Service {
 public:
  // Throws Error(bad_file) when the model's chat template does not compile.
  // What it is given outlives it.
  Service(const ServerOptions& options, const Door& door, Backend& backend, Log& log);

  void handle(HttpRequest request, std::shared_ptr<Responder> responder);

  // From now on /health says no and new work is refused.
  void drain() { draining_.store(true); }
  void abort_generations() { live_.abort_all(); }
  // After the connections have been closed: ends what is left.
  void stop();

  size_t generations() const { return live_.size(); }

  // What there is, for the description of the API.
  static std::vector<RouteName> route_names();

 private:
  // One request on its way through a route.
  struct Call {
    HttpRequest request;
    std::shared_ptr<Responder> responder;
    std::string id;  // x-request-id
    Dialect dialect = Dialect::lorax;
    std::shared_ptr<Tenant> tenant;
    std::shared_ptr<Ticket> ticket;  // of a generation, for its time
  };
  using CallPtr = std::shared_ptr<Call>;
  using Handler = void (Service::*)(const CallPtr& call);
  struct Route {
    std::string_view method;
    std::string_view path;  // one that ends with / stands for all below it
    Handler handler;
    bool admin = false;  // for keys with that right
  };
  using MakeJob = std::function<Job(const Call& call, std::vector<std::string>* unknown)>;

  static const std::vector<Route>& routes();
  void dispatch(const CallPtr& call);

  void home(const CallPtr& call);
  void health(const CallPtr& call);
  void startup(const CallPtr& call);
  void info(const CallPtr& call);
  void version(const CallPtr& call);
  void docs(const CallPtr& call);
  void openapi_json(const CallPtr& call);
  void metrics(const CallPtr& call);
  void models(const CallPtr& call);
  void model(const CallPtr& call);
  void tokenize(const CallPtr& call);
  void detokenize(const CallPtr& call);
  void no_embeddings(const CallPtr& call);
  void no_classes(const CallPtr& call);
  void adapters(const CallPtr& call);
  void load_adapter(const CallPtr& call);
  void unload_adapter(const CallPtr& call);
  void generate(const CallPtr& call);
  void generate_stream(const CallPtr& call);
  void compat(const CallPtr& call);
  void completions(const CallPtr& call);
  void chat_completions(const CallPtr& call);
  void responses(const CallPtr& call);

  bool is_healthy() const;
  Asked asked_by(const Call& call) const;
  void lorax(const CallPtr& call, LoraxForm form);
  void openai(const CallPtr& call, Api api);

  void start_generation(const CallPtr& call, MakeJob make, std::shared_ptr<Presenter> presenter);
  void prepare(const CallPtr& call, const MakeJob& make,
               const std::shared_ptr<Presenter>& presenter);
  // Runs `work` on a worker and answers with what it returns, or with what it throws.
  void answer_from_worker(const CallPtr& call, std::function<HttpResponse()> work);
  // A line in the log and a span of a request that has ended. `parent`: its traceparent header.
  void tell(const Call& call, const Results& results, std::string_view outcome) const;
  void reply(const Call& call, HttpResponse response) const;
  void refuse(const Call& call, const ApiError& error) const;
  std::shared_ptr<Job> make_job(const Call& call, const MakeJob& make);
  void note_unknown(const std::vector<std::string>& names);
  std::vector<std::string> served_models() const;
  void write_model(JsonWriter& json, const std::string& id) const;

  const ServerOptions& options_;
  const Door& door_;
  Backend& backend_;
  Log& log_;
  std::optional<ChatTemplate> chat_;
  GrammarCache grammars_;
  Intake intake_;
  Metrics metrics_;
  Crowd crowd_;
  LiveGenerations live_;
  const int64_t started_;  // unix time
  std::string docs_page_, openapi_json_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> probing_{false};      // one token is being computed for /startup
  std::atomic<bool> has_started_{false};  // and has been
  std::mutex unknown_mutex_;
  std::set<std::string> unknown_names_;  // that the log has
  WorkerPool workers_;                   // last: its threads use the others
};

}  // namespace lorry
