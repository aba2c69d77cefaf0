#include "cli/talk.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <variant>

#include <boost/json/serialize.hpp>

#include "base/bounded_queue.h"
#include "base/error.h"
#include "text/stream_decoder.h"

namespace lorry {

namespace {

using Event = std::variant<TokenEvent, FinishEvent>;

// Hands the events from the engine's thread to ours; has room for a whole answer.
class EventQueue : public RequestSink {
 public:
  explicit EventQueue(int32_t max_tokens) : events_(static_cast<size_t>(max_tokens) + 1) {}
  void on_token(const TokenEvent& event) override { push(event); }
  void on_finish(const FinishEvent& event) override { push(event); }
  Event next() { return *events_.pop(); }

 private:
  void push(Event event) { LORRY_CHECK(events_.try_push(std::move(event))); }

  BoundedQueue<Event> events_;
};

void print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

const Tokenizer& tokenizer_of(const Engine& engine) {
  if (engine.tokenizer() == nullptr) {
    fail(Code::unsupported, "{} has no tokenizer: there is no text to talk in", engine.info().name);
  }
  return *engine.tokenizer();
}

}  // namespace

Talk::Talk(EngineOptions options, Log& log)
    : engine_(std::move(options), log), tokenizer_(tokenizer_of(engine_)) {}

std::vector<int32_t> Talk::encode(std::string_view text) const { return tokenizer_.encode(text); }

std::vector<int32_t> Talk::encode_chat(const json::array& messages) {
  if (!template_) {
    if (tokenizer_.chat_template().empty()) {
      fail(Code::unsupported, "{} has no chat template; use lorry generate with a whole prompt",
           engine_.info().name);
    }
    template_ = std::make_unique<ChatTemplate>(tokenizer_, tokenizer_.chat_template());
  }
  return template_->render(json::serialize(messages)).ids;
}

int64_t Talk::longest() const {
  return std::min(engine_.info().max_total_tokens, engine_.memory().kv_tokens);
}

Spoken Talk::ask(Request request) {
  const auto events = std::make_shared<EventQueue>(request.max_new_tokens);
  request.sink = events;
  StreamDecoder decoder(tokenizer_);
  Spoken answer;
  const auto write = [&](const std::string& piece) {
    print(piece);
    answer.text += piece;
  };
  running_ = engine_.submit(std::move(request));
  while (true) {
    Event event = events->next();
    if (const auto* token = std::get_if<TokenEvent>(&event)) {
      write(decoder.push(token->token.id));
      continue;
    }
    running_ = 0;
    answer.finish = std::get<FinishEvent>(event);
    if (answer.finish.error) throw *answer.finish.error;
    write(decoder.finish());
    return answer;
  }
}

bool Talk::interrupt() {
  const RequestId id = running_;
  if (id == 0) return false;
  engine_.cancel(id);
  return true;
}

TalkSession::TalkSession(const ModelPlace& place, EngineOptions options, Log& log,
                         ProgressLine& line)
    : place_(place), line_(line), signals_([this] { interrupt(); }) {
  options.progress = line.sink();
  auto talk = std::make_unique<Talk>(std::move(options), log);
  line.end();
  const std::lock_guard lock(mutex_);
  talk_ = std::move(talk);
}

TalkSession::~TalkSession() = default;

void TalkSession::interrupt() {
  const std::lock_guard lock(mutex_);
  if (talk_ && talk_->interrupt()) return;
  line_.end();
  if (place_.demo) place_.demo->remove();
  std::_Exit(kInterrupted);
}

}  // namespace lorry
