#include "serve/generation.h"

#include <utility>

#include <fmt/format.h>

#include "serve/backend.h"
#include "serve/metrics.h"

namespace lorry {

namespace {

// Tokens that come faster than this reach their client together: waking a thread and writing to a
// socket cost more than a small model's step.
constexpr auto kGather = std::chrono::milliseconds(4);
// And where more than one comes in it, longer: nobody reads 250 tokens a second, and no screen
// shows a difference of 12 ms.
constexpr auto kGatherMany = 3 * kGather;
// Of an answer that is not a stream only the metrics hear before its end.
constexpr auto kGatherWhole = 24 * kGather;

// The end of a period that is the same one for all streams: a thread that is woken then finds the
// tokens of many, and takes the core from the computing threads once for all of them.
std::chrono::steady_clock::time_point next_gathering(std::chrono::steady_clock::time_point now,
                                                     std::chrono::milliseconds period) {
  return now + (period - now.time_since_epoch() % period);
}

// The engine's side of one answer.
class QueueSink final : public RequestSink {
 public:
  QueueSink(std::shared_ptr<EventQueue> queue, size_t answer)
      : queue_(std::move(queue)), answer_(answer) {}

  void on_start() override { queue_->push({Event::Kind::start, answer_, {}}); }
  void on_prompt_token(const TokenEvent& event) override {
    queue_->push({Event::Kind::prompt_token, answer_, event});
  }
  void on_token(const TokenEvent& event) override {
    queue_->push({Event::Kind::token, answer_, event});
  }
  void on_finish(const FinishEvent& event) override {
    queue_->push({Event::Kind::finish, answer_, event});
  }

 private:
  std::shared_ptr<EventQueue> queue_;
  size_t answer_;
};

}  // namespace

double Answer::mean_logprob() const {
  if (tokens.empty()) return 0;
  double sum = 0;
  for (const TokenRecord& token : tokens) sum += static_cast<double>(token.logprob);
  return sum / static_cast<double>(tokens.size());
}

int64_t Results::prompt_tokens() const {
  int64_t n = 0;
  for (const Prompt& prompt : job.prompts) n += static_cast<int64_t>(prompt.ids.size());
  return n;
}

int64_t Results::generated_tokens() const {
  int64_t n = 0;
  for (const Answer& answer : answers) n += static_cast<int64_t>(answer.tokens.size());
  return n;
}

int64_t Results::most_tokens() const {
  const auto n_prompts = static_cast<int64_t>(job.prompts.size());
  return prompt_tokens() * job.answers_per_prompt +
         n_prompts * job.answers_per_prompt * job.request.max_new_tokens;
}

int64_t Results::skipped_tokens() const {
  int64_t n = 0;
  for (const Answer& answer : answers) n += answer.finish ? answer.finish->skipped_tokens : 0;
  return n;
}

void EventQueue::push(Event event) {
  std::lock_guard lock(mutex_);
  if (!owner_) return;
  const bool held = state_ == State::held && event.kind != Event::Kind::finish;
  events_.push_back(std::move(event));
  if (held || state_ == State::woken) return;
  state_ = State::woken;
  owner_->post([owner = owner_] { owner->receive(); });
}

std::vector<Event> EventQueue::take() {
  std::lock_guard lock(mutex_);
  state_ = State::idle;
  return std::exchange(events_, {});
}

bool EventQueue::hold() {
  std::lock_guard lock(mutex_);
  if (state_ != State::idle) return false;
  state_ = State::held;
  return true;
}

void EventQueue::detach() {
  std::shared_ptr<Generation> owner;  // released outside of the lock
  std::lock_guard lock(mutex_);
  owner = std::move(owner_);
  owner_ = nullptr;
  events_.clear();
}

Generation::Generation(Parts parts, Job job) : parts_(std::move(parts)) {
  results_.job = std::move(job);
  const int64_t n = results_.job.answers_per_prompt;
  for (size_t p = 0; p < results_.job.prompts.size(); ++p) {
    for (int64_t i = 0; i < n; ++i) {
      results_.answers.emplace_back(results_.answers.size(), p, parts_.backend.tokenizer());
      results_.answers.back().seed = results_.job.request.sampling.seed + static_cast<uint64_t>(i);
    }
  }
  open_answers_ = results_.answers.size();
}

void Generation::start() {
  parts_.live.add(shared_from_this());
  parts_.metrics.adapter_waits(results_.job.request.adapter.label());
  queue_ = std::make_shared<EventQueue>(shared_from_this());
  parts_.responder->on_close([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->client_gone();
  });
  if (done_) return;
  const auto start_by = results_.job.start_by;
  if (start_by != std::chrono::steady_clock::time_point{}) {
    if (std::chrono::steady_clock::now() >= start_by) return overdue();
    parts_.responder->at(start_by, [weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->overdue();
    });
  }
  try {
    submit_all();
  } catch (const std::exception& e) {
    fail(to_api_error(e, Stage::parsing));
    return;
  }
  if (results_.job.fields.stream) {
    HttpResponse head;
    head.content_type = "text/event-stream";
    head.headers = parts_.presenter->stream_headers(results_);
    head.headers.emplace_back("cache-control", "no-cache");
    head.headers.emplace_back("x-accel-buffering", "no");
    parts_.responder->prepare_stream(std::move(head));
  }
}

void Generation::submit_all() {
  for (size_t i = 0; i < results_.answers.size(); ++i) {
    Answer& answer = results_.answers[i];
    Request request = results_.job.request;
    request.prompt = results_.job.prompts[answer.prompt].ids;
    request.sampling.seed = answer.seed;
    request.sink = std::make_shared<QueueSink>(queue_, i);
    answer.id = parts_.backend.submit(std::move(request));
  }
}

void Generation::receive() { take_events(true); }

void Generation::take_events(bool woken) {
  std::vector<Event> events = queue_->take();
  if (events.empty()) return;
  for (Event& event : events) {
    if (done_) return;
    handle(event);
  }
  const auto now = std::chrono::steady_clock::now();
  const bool fast = !woken || now - taken_ < kGather;
  taken_ = now;
  if (done_ || !fast || !queue_->hold()) return;
  const auto period = !results_.job.fields.stream ? kGatherWhole
                      : events.size() > 1         ? kGatherMany
                                                  : kGather;
  parts_.responder->at(next_gathering(now, period), [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->take_events(false);
  });
}

void Generation::handle(Event& event) {
  Answer& answer = results_.answers[event.answer];
  switch (event.kind) {
    case Event::Kind::start:
      results_.started = true;
      break;
    case Event::Kind::prompt_token:
      answer.prompt_tokens.push_back(record_of(std::get<TokenEvent>(event.what)));
      break;
    case Event::Kind::token:
      take_token(answer, event);
      break;
    case Event::Kind::finish:
      take_finish(answer, std::move(std::get<FinishEvent>(event.what)));
      break;
  }
}

TokenRecord Generation::record_of(const TokenEvent& event) const {
  TokenRecord record;
  record.id = event.token.id;
  record.logprob = event.token.logprob;
  record.special = parts_.backend.tokenizer().is_special(record.id);
  record.skipped = event.skipped;
  record.alternatives = event.token.alternatives;
  return record;
}

void Generation::take_token(Answer& answer, const Event& event) {
  TokenRecord record = record_of(std::get<TokenEvent>(event.what));
  const std::string piece = answer.decoder.push(record.id);
  record.text = record.special ? std::string(parts_.backend.tokenizer().piece(record.id)) : piece;
  answer.text += piece;
  if (record.special && record.text == kToolMarker && !answer.tool_marker) {
    answer.tool_marker = answer.text.size();
  }
  answer.tokens.push_back(std::move(record));
  if (results_.first_token == std::chrono::steady_clock::time_point{}) {
    results_.first_token = event.at;
    parts_.metrics.adapter_runs(results_.job.request.adapter.label());
    parts_.metrics.reserve(results_.most_tokens());
    parts_.metrics.first_token(event.at - results_.job.received);
  } else if (results_.answers.size() == 1) {
    parts_.metrics.next_token(event.at - results_.last_token);
  }
  results_.last_token = event.at;
  if (results_.job.fields.stream) send(parts_.presenter->on_token(results_, answer));
}

void Generation::take_finish(Answer& answer, FinishEvent finish) {
  if (finish.reason == FinishReason::failed) {
    const Error error = finish.error.value_or(Error(Code::internal, "no reason was given"));
    fail(to_api_error(error, Stage::generating));
    return;
  }
  // Its clients know no such reason; OpenAI's are told "abort".
  if (finish.reason == FinishReason::cancelled && parts_.presenter->dialect() == Dialect::lorax) {
    fail({Problem::unavailable, "the server is shutting down", {}});
    return;
  }
  const std::string rest = answer.decoder.finish();
  answer.text += rest;
  if (!answer.tokens.empty() && !answer.tokens.back().special) answer.tokens.back().text += rest;
  answer.finish = std::move(finish);
  if (results_.job.fields.stream) send(parts_.presenter->on_finish(results_, answer));
  if (done_ || --open_answers_ > 0) return;

  if (results_.job.fields.stream) {
    send(parts_.presenter->on_end(results_));
    if (done_) return;
    parts_.responder->finish_stream();
  } else {
    HttpResponse response = parts_.presenter->whole(results_);
    parts_.responder->respond(std::move(response));
  }
  parts_.metrics.succeeded(results_);
  end("ok");
}

void Generation::send(const std::string& bytes) {
  if (done_ || bytes.empty()) return;
  parts_.responder->write(bytes);  // when it fails, client_gone() has run
}

void Generation::overdue() {
  if (queue_) receive();  // it may just have begun
  if (done_ || results_.started) return;
  const std::chrono::duration<double> limit = results_.job.start_by - results_.job.received;
  fail({Problem::late,
        fmt::format("the request was not begun within {:g} s, the limit of time in the queue; try "
                    "again later",
                    limit.count()),
        {}});
}

void Generation::fail(const ApiError& error) {
  cancel_all();
  parts_.metrics.failed(type_of(error.problem));
  if (parts_.responder->begun()) {
    parts_.responder->write(parts_.presenter->on_error(error));
    if (!parts_.responder->closed()) parts_.responder->finish_stream();
  } else {
    HttpResponse response = error_response(error, parts_.presenter->dialect());
    parts_.responder->respond(std::move(response));
  }
  end(type_of(error.problem));
}

void Generation::client_gone() {
  if (done_) return;
  cancel_all();
  parts_.metrics.failed("client_closed");
  end("client_closed");
}

void Generation::cancel_all() {
  for (const Answer& answer : results_.answers) {
    if (answer.id != 0 && !answer.finish) parts_.backend.cancel(answer.id);
  }
}

void Generation::end(std::string_view outcome) {
  if (std::exchange(done_, true)) return;
  const bool had_run = results_.first_token != std::chrono::steady_clock::time_point{};
  parts_.metrics.adapter_done(results_.job.request.adapter.label(), had_run);
  if (had_run) parts_.metrics.reserve(-results_.most_tokens());
  parts_.ticket.reset();
  if (parts_.told) parts_.told(results_, outcome);
  if (queue_) queue_->detach();
  parts_.live.remove(this);
}

void Generation::detach() {
  cancel_all();
  if (queue_) queue_->detach();
}

void LiveGenerations::add(const std::shared_ptr<Generation>& generation) {
  std::lock_guard lock(mutex_);
  all_.emplace(generation.get(), generation);
}

void LiveGenerations::remove(const Generation* generation) {
  std::shared_ptr<Generation> released;  // outside of the lock
  std::lock_guard lock(mutex_);
  if (const auto found = all_.find(generation); found != all_.end()) {
    released = std::move(found->second);
    all_.erase(found);
  }
}

size_t LiveGenerations::size() const {
  std::lock_guard lock(mutex_);
  return all_.size();
}

std::vector<std::shared_ptr<Generation>> LiveGenerations::copy() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Generation>> out;
  for (const auto& [key, generation] : all_) out.push_back(generation);
  return out;
}

void LiveGenerations::abort_all() {
  for (const auto& generation : copy()) generation->post([generation] { generation->abort(); });
}

void LiveGenerations::detach_all() {
  const auto all = copy();
  {
    std::lock_guard lock(mutex_);
    all_.clear();
  }
  for (const auto& generation : all) generation->detach();
}

}  // namespace lorry
