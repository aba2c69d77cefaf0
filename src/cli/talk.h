// Talk: one request after the other to an engine of its own, each answer written out as it grows.
// ask() is called by one thread; interrupt() by any.
#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "cli/model_flags.h"
#include "cli/progress_line.h"
#include "cli/signals.h"
#include "engine/engine.h"
#include "text/chat_template.h"

namespace lorry {

inline constexpr int kInterrupted = 130;  // exit status, as shells have it

struct Spoken {
  std::string text;
  FinishEvent finish;
};

class Talk {
 public:
  // Throws Error(unsupported) for a model without a tokenizer.
  Talk(EngineOptions options, Log& log);

  // Tokens of a prompt as it stands, and of a chat. Throw Error; chat() also where the model has
  // no chat template.
  std::vector<int32_t> encode(std::string_view text) const;
  std::vector<int32_t> encode_chat(const json::array& messages);

  // Writes the answer to standard output. Throws Error when the request fails.
  Spoken ask(Request request);
  // Ends the answer that is being given. False: there is none.
  bool interrupt();

  Engine& engine() { return engine_; }
  // Tokens of prompt and answer together.
  int64_t longest() const;

 private:
  Engine engine_;
  const Tokenizer& tokenizer_;
  std::unique_ptr<ChatTemplate> template_;  // made when first used
  std::atomic<RequestId> running_{0};
};

// A Talk whose answers end at Control-C; between two answers, and while the model is being loaded,
// Control-C ends the program.
class TalkSession {
 public:
  // `line` shows how far the loading is, and ends with it.
  TalkSession(const ModelPlace& place, EngineOptions options, Log& log, ProgressLine& line);
  ~TalkSession();
  Talk& talk() { return *talk_; }

 private:
  void interrupt();

  const ModelPlace& place_;
  ProgressLine& line_;
  std::mutex mutex_;  // of talk_, for the thread of the signals
  std::unique_ptr<Talk> talk_;
  Signals signals_;  // the last member: its thread uses the others
};

}  // namespace lorry
