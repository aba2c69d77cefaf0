// One request's generation: a validated Job becomes engine requests (one per prompt and answer),
// whose tokens come back through an EventQueue to the connection's strand, are turned into text and
// told to the client by a Presenter. Everything but the queue runs on that strand.
#pragma once
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "engine/request.h"
#include "serve/errors.h"
#include "serve/fields.h"
#include "serve/http.h"
#include "serve/keys.h"
#include "serve/tools.h"
#include "text/stream_decoder.h"

namespace lorry {

class Backend;
class LiveGenerations;
class Metrics;

struct Prompt {
  std::vector<int32_t> ids;
  std::string text;  // empty when it came as ids
};

struct Job {
  Api api = Api::lorax;
  Fields fields;
  std::vector<Prompt> prompts;  // at least one
  int64_t answers_per_prompt = 1;
  Request request;  // what all have in common
  ToolPlan tools;
  std::string model;      // as named to the client
  bool as_array = false;  // LoRAX's compat route
  std::string echo;       // what a response repeats of its request: members of a JSON object
  size_t input_characters = 0;
  std::chrono::steady_clock::time_point received{};
  // When it is given up if none of its answers has begun; zero: never.
  std::chrono::steady_clock::time_point start_by{};
  double validation_seconds = 0;
  std::string id;       // of the request, for the client
  int64_t created = 0;  // unix time
};

struct TokenRecord {
  int32_t id = 0;
  float logprob = 0;
  bool special = false;
  bool skipped = false;  // a draft that was kept
  std::string text;      // what it added to the text; of a special token, its name
  std::vector<TokenProbability> alternatives;
};

// One sequence: an answer to one of the prompts.
struct Answer {
  Answer(size_t which, size_t of_prompt, const Tokenizer& tokenizer)
      : number(which), prompt(of_prompt), decoder(tokenizer) {}

  size_t number = 0;  // its place in Results
  size_t prompt = 0;
  uint64_t seed = 0;
  RequestId id = 0;
  std::vector<TokenRecord> prompt_tokens;  // from the second on, where asked for
  std::vector<TokenRecord> tokens;
  std::string text;
  std::optional<FinishEvent> finish;
  std::optional<size_t> tool_marker;  // where in the text the token [TOOL_CALLS] came
  size_t told = 0;                    // a presenter's count of tokens that the client was told of
  StreamDecoder decoder;
  double mean_logprob() const;  // of its tokens
};

struct Results {
  Job job;
  std::vector<Answer> answers;  // by prompt, then by number
  bool started = false;         // one of them has left the queue
  std::chrono::steady_clock::time_point first_token{}, last_token{};
  int64_t prompt_tokens() const;
  int64_t generated_tokens() const;
  int64_t skipped_tokens() const;  // of finished answers
  int64_t most_tokens() const;     // of prompts and answers together
};

// Writes a generation in the form of a dialect. What it returns is sent as it is.
class Presenter {
 public:
  virtual ~Presenter() = default;
  virtual Dialect dialect() const = 0;
  virtual HttpHeaders stream_headers(const Results& results) = 0;
  // After `answer` has got a token, and after it has got its finish (no more tokens then).
  virtual std::string on_token(const Results& results, Answer& answer) = 0;
  virtual std::string on_finish(const Results& results, Answer& answer) = 0;
  virtual std::string on_end(const Results& results) = 0;   // of the stream
  virtual std::string on_error(const ApiError& error) = 0;  // instead of the rest of the stream
  virtual HttpResponse whole(const Results& results) = 0;   // not a stream
};

struct Event {
  enum class Kind { start, prompt_token, token, finish };
  Kind kind = Kind::token;
  size_t answer = 0;
  std::variant<std::monostate, TokenEvent, FinishEvent> what;
  std::chrono::steady_clock::time_point at = std::chrono::steady_clock::now();
};

class Generation;

// From the engine's thread to the strand: many events, one wake-up. It wakes the owner, whose
// receive() then takes what there is; or the owner comes by itself, and only an end wakes it.
class EventQueue {
 public:
  explicit EventQueue(std::shared_ptr<Generation> owner) : owner_(std::move(owner)) {}
  void push(Event event);
  std::vector<Event> take();
  // The owner will take what comes from now on at a time of its own. False: it has been woken.
  bool hold();
  // Nothing reaches the owner any more; it is let go.
  void detach();

 private:
  std::mutex mutex_;
  std::shared_ptr<Generation> owner_;
  std::vector<Event> events_;
  enum class State { idle, woken, held } state_ = State::idle;
};

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  struct Parts {
    Backend& backend;
    LiveGenerations& live;
    Metrics& metrics;
    std::shared_ptr<Responder> responder;
    std::shared_ptr<Presenter> presenter;
    std::shared_ptr<Ticket> ticket;  // of its tenant, until the end
    // Once, at the end: "ok", or errors.h: type_of() of what went wrong.
    std::function<void(const Results&, std::string_view outcome)> told = {};
  };
  Generation(Parts parts, Job job);

  // Submits everything; an engine that refuses is answered for.
  void start();
  // The server ends it: what there is goes to the client.
  void abort() { cancel_all(); }
  // The connections are closed and the strands at rest: the engine is to forget it.
  void detach();
  // Any thread.
  void post(std::function<void()> work) { parts_.responder->post(std::move(work)); }
  void receive();  // what the queue holds, having been woken

 private:
  void submit_all();
  void take_events(bool woken);
  void handle(Event& event);
  void take_token(Answer& answer, const Event& event);
  void take_finish(Answer& answer, FinishEvent finish);
  // The time in the queue is over. The connection's strand notices, since the engine's thread may
  // be busy with a step of others or asleep until an adapter has come.
  void overdue();
  void fail(const ApiError& error);
  void client_gone();
  void end(std::string_view outcome);
  void cancel_all();
  void send(const std::string& bytes);
  TokenRecord record_of(const TokenEvent& event) const;

  Parts parts_;
  Results results_;
  std::shared_ptr<EventQueue> queue_;
  size_t open_answers_ = 0;
  std::chrono::steady_clock::time_point taken_{};  // the last events
  bool done_ = false;
};

// The generations that run, so that a server can stop them. Any thread.
class LiveGenerations {
 public:
  void add(const std::shared_ptr<Generation>& generation);
  void remove(const Generation* generation);
  size_t size() const;
  void abort_all();
  // When nothing runs on the strands any more: cancels, and lets go of all.
  void detach_all();

 private:
  std::vector<std::shared_ptr<Generation>> copy() const;
  mutable std::mutex mutex_;
  std::unordered_map<const Generation*, std::shared_ptr<Generation>> all_;
};

}  // namespace lorry
