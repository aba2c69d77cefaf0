// A Backend without a model: an answer is its prompt, token by token, then the end of the text.
#pragma once
#include <string>
#include <utility>

#include "base/error.h"
#include "serve/backend.h"

namespace lorry::fuzz {

class EchoBackend final : public Backend {
 public:
  explicit EchoBackend(const std::string& model_folder)
      : tokenizer_(Tokenizer::load(model_folder)) {
    info_.name = "echo";
    info_.digest = "00ff";
    info_.spec.vocab = tokenizer_.vocab_size();
    info_.max_total_tokens = 512;
  }

  RequestId submit(Request request) override {
    LORRY_CHECK(!request.prompt.empty(), "a prompt without tokens");
    LORRY_CHECK(request.max_new_tokens >= 0, "a negative number of tokens");
    const auto most = static_cast<size_t>(request.max_new_tokens);
    const auto n_prompt = static_cast<int32_t>(request.prompt.size());
    for (const int32_t id : request.prompt) {
      LORRY_CHECK(id >= 0 && id < info_.spec.vocab, "token {} is out of vocabulary", id);
      if (request.prompt_logprobs) request.sink->on_prompt_token(event(id, request));
    }
    FinishEvent finish;
    finish.prompt_tokens = n_prompt;
    for (const int32_t id : request.prompt) {
      if (static_cast<size_t>(finish.generated_tokens) == most) break;
      ++finish.generated_tokens;
      request.sink->on_token(event(id, request));
    }
    if (static_cast<size_t>(finish.generated_tokens) < most) {
      ++finish.generated_tokens;
      request.sink->on_token(event(tokenizer_.eos_ids().front(), request));
      finish.reason = FinishReason::eos_token;
    }
    request.sink->on_finish(finish);
    return ++last_id_;
  }
  void cancel(RequestId) override {}
  const ModelInfo& info() const override { return info_; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }
  EngineStats stats() const override { return {}; }
  AdapterSnapshot adapters() const override { return {}; }
  void load_adapter(AdapterLoad, std::function<void(const Error*)> done) override {
    const Error absent(Code::not_found, "no such adapter");
    done(&absent);
  }
  void unload_adapter(const std::string&) override { throw Error(Code::not_found, "unknown"); }
  double stuck_seconds() const override { return 0; }

 private:
  static TokenEvent event(int32_t id, const Request& request) {
    TokenEvent e;
    e.token.id = id;
    e.token.logprob = -0.5F;
    for (int32_t i = 0; i < request.sampling.alternatives; ++i) {
      e.token.alternatives.push_back({id, -0.5F});
    }
    return e;
  }

  Tokenizer tokenizer_;
  ModelInfo info_;
  RequestId last_id_ = 0;
};

}  // namespace lorry::fuzz
