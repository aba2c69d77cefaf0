// How OpenAI's dialect tells a generation: completion objects and their chunks.
#include <algorithm>
#include <set>

#include "serve/json_writer.h"
#include "serve/openai_api.h"
#include "serve/stop_filter.h"

namespace lorry {

namespace {

// What was told of one answer, and what is held back.
struct Told {
  explicit Told(const std::vector<std::string>& stops) : filter(stops) {}
  StopFilter filter;
  size_t fed = 0;          // bytes of Answer::text that the filter has seen
  size_t tokens = 0;       // whose log-probabilities were told
  size_t text_offset = 0;  // characters of the tokens told
  bool begun = false;      // the first chunk was made
};

class OpenAiPresenter final : public Presenter {
 public:
  OpenAiPresenter(const Tokenizer& tokenizer, Api api)
      : tokenizer_(tokenizer),
        chat_(api == Api::chat),
        id_((chat_ ? "chatcmpl-" : "cmpl-") + random_id()) {}

  Dialect dialect() const override { return Dialect::openai; }
  HttpHeaders stream_headers(const Results&) override { return {}; }
  std::string on_token(const Results& results, Answer& answer) override;
  std::string on_finish(const Results& results, Answer& answer) override;
  std::string on_end(const Results& results) override;
  std::string on_error(const ApiError& error) override {
    return sse_event(error_json(error, Dialect::openai)) + "data: [DONE]\n\n";
  }
  HttpResponse whole(const Results& results) override;

 private:
  Told& told(const Results& results, const Answer& answer);
  std::string feed(const Results& results, const Answer& answer);
  std::string first_chunk(const Results& results, const Answer& answer);
  std::string chunk(const Results& results, const Answer& answer, const std::string& text,
                    std::string_view reason);
  void begin_object(JsonWriter& json, const Results& results, bool streaming) const;
  void write_choice(JsonWriter& json, const Results& results, const Answer& answer);
  void write_logprobs(JsonWriter& json, const Results& results, const Answer& answer);
  void write_chat_logprobs(JsonWriter& json, const Results& results, const Answer& answer);
  void write_chat_token(JsonWriter& json, int32_t id, float logprob) const;
  void write_completion_logprobs(JsonWriter& json, const Results& results, const Answer& answer);
  void write_usage(JsonWriter& json, const Results& results) const;
  std::string_view reason_of(const Results& results, const Answer& answer);
  std::string prompt_text(const Results& results, const Answer& answer) const;

  const Tokenizer& tokenizer_;
  const bool chat_;
  const std::string id_;
  std::vector<Told> told_;  // by answer
};

Told& OpenAiPresenter::told(const Results& results, const Answer& answer) {
  while (told_.size() < results.answers.size()) told_.emplace_back(results.job.request.stop);
  return told_[answer.number];
}

// Passes the answer's new text through the stop filter.
std::string OpenAiPresenter::feed(const Results& results, const Answer& answer) {
  Told& state = told(results, answer);
  std::string_view fresh = std::string_view(answer.text).substr(state.fed);
  state.fed = answer.text.size();
  const std::vector<int32_t>& ids = results.job.request.stop_token_ids;
  if (!answer.tokens.empty() && !answer.tokens.back().special &&
      std::find(ids.begin(), ids.end(), answer.tokens.back().id) != ids.end()) {
    fresh.remove_suffix(std::min(fresh.size(), answer.tokens.back().text.size()));
  }
  return state.filter.push(fresh);
}

std::string_view OpenAiPresenter::reason_of(const Results& results, const Answer& answer) {
  if (told(results, answer).filter.stopped()) return "stop";
  switch (answer.finish->reason) {
    case FinishReason::length:
      return "length";
    case FinishReason::eos_token:
    case FinishReason::stop_sequence:
      return "stop";
    case FinishReason::cancelled:
    case FinishReason::failed:
      break;
  }
  return "abort";
}

std::string OpenAiPresenter::prompt_text(const Results& results, const Answer& answer) const {
  const Prompt& prompt = results.job.prompts[answer.prompt];
  return prompt.text.empty() ? tokenizer_.decode(prompt.ids) : prompt.text;
}

void OpenAiPresenter::begin_object(JsonWriter& json, const Results& results, bool streaming) const {
  json.begin_object().member("id", id_);
  json.member("object", !chat_      ? "text_completion"
                        : streaming ? "chat.completion.chunk"
                                    : "chat.completion");
  json.member("created", results.job.created).member("model", results.job.model);
}

void OpenAiPresenter::write_usage(JsonWriter& json, const Results& results) const {
  int64_t cached = 0;
  for (const Answer& answer : results.answers) {
    if (answer.finish) cached += answer.finish->cached_tokens;
  }
  const int64_t prompt = results.prompt_tokens();
  const int64_t generated = results.generated_tokens();
  json.begin_object().member("prompt_tokens", prompt).member("completion_tokens", generated);
  json.member("total_tokens", prompt + generated);
  json.key("prompt_tokens_details").begin_object();
  json.member("cached_tokens", std::min(cached, prompt)).end_object().end_object();
}

// ---- log-probabilities, of the tokens that were not told yet

void OpenAiPresenter::write_chat_token(JsonWriter& json, int32_t id, float logprob) const {
  json.member("token", token_label(tokenizer_, id)).member("logprob", logprob);
  json.key("bytes").begin_array();
  const std::string_view bytes =
      tokenizer_.is_special(id) ? tokenizer_.piece(id) : tokenizer_.bytes(id);
  for (const char c : bytes) json.value(static_cast<int>(static_cast<unsigned char>(c)));
  json.end_array();
}

void OpenAiPresenter::write_chat_logprobs(JsonWriter& json, const Results& results,
                                          const Answer& answer) {
  Told& state = told(results, answer);
  json.begin_object().key("content").begin_array();
  for (; state.tokens < answer.tokens.size(); ++state.tokens) {
    const TokenRecord& token = answer.tokens[state.tokens];
    json.begin_object();
    write_chat_token(json, token.id, token.logprob);
    json.key("top_logprobs").begin_array();
    for (const TokenProbability& other : token.alternatives) {
      json.begin_object();
      write_chat_token(json, other.id, other.logprob);
      json.end_object();
    }
    json.end_array().end_object();
  }
  json.end_array().key("refusal").null().end_object();
}

// One list of tokens: with echo the prompt's, then the answer's. The first of a prompt has no
// log-probability.
struct LoggedToken {
  int32_t id = 0;
  const TokenRecord* record = nullptr;  // null: unknown
};

std::vector<LoggedToken> logged_tokens(const Results& results, const Answer& answer) {
  std::vector<LoggedToken> all;
  if (results.job.fields.echo) {
    const std::vector<int32_t>& ids = results.job.prompts[answer.prompt].ids;
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool known = i > 0 && i <= answer.prompt_tokens.size();
      all.push_back({ids[i], known ? &answer.prompt_tokens[i - 1] : nullptr});
    }
  }
  for (const TokenRecord& token : answer.tokens) all.push_back({token.id, &token});
  return all;
}

void OpenAiPresenter::write_completion_logprobs(JsonWriter& json, const Results& results,
                                                const Answer& answer) {
  Told& state = told(results, answer);
  std::vector<LoggedToken> tokens = logged_tokens(results, answer);
  tokens.erase(tokens.begin(), tokens.begin() + static_cast<int64_t>(state.tokens));
  state.tokens += tokens.size();

  json.begin_object().key("tokens").begin_array();
  for (const LoggedToken& token : tokens) json.value(token_label(tokenizer_, token.id));
  json.end_array().key("token_logprobs").begin_array();
  for (const LoggedToken& token : tokens) {
    token.record != nullptr ? json.value(token.record->logprob) : json.null();
  }
  json.end_array().key("top_logprobs").begin_array();
  for (const LoggedToken& token : tokens) {
    if (token.record == nullptr) {
      json.null();
      continue;
    }
    // Tokens that read the same are one key: the more probable one, which comes first.
    std::set<std::string> written;
    json.begin_object();
    const auto write = [&](int32_t id, float logprob) {
      std::string label = token_label(tokenizer_, id);
      if (written.insert(label).second) json.member(label, logprob);
    };
    for (const TokenProbability& other : token.record->alternatives) write(other.id, other.logprob);
    write(token.id, token.record->logprob);
    json.end_object();
  }
  json.end_array().key("text_offset").begin_array();
  for (const LoggedToken& token : tokens) {
    json.value(state.text_offset);
    state.text_offset += count_characters(token_label(tokenizer_, token.id));
  }
  json.end_array().end_object();
}

void OpenAiPresenter::write_logprobs(JsonWriter& json, const Results& results,
                                     const Answer& answer) {
  json.key("logprobs");
  if (!results.job.request.sampling.logprobs) {
    json.null();
  } else if (chat_) {
    write_chat_logprobs(json, results, answer);
  } else {
    write_completion_logprobs(json, results, answer);
  }
}

// ---- the stream

// `reason`: of the last chunk; empty before. Chunks of chat begin with one that has only the role.
std::string OpenAiPresenter::chunk(const Results& results, const Answer& answer,
                                   const std::string& text, std::string_view reason) {
  JsonWriter json;
  begin_object(json, results, true);
  json.key("choices").begin_array().begin_object().member("index", answer.number);
  const Told& state = told(results, answer);
  if (!chat_) {
    json.member("text", text);
  } else {
    json.key("delta").begin_object();
    if (!state.begun) json.member("role", "assistant");
    if (reason.empty()) json.member("content", text);
    json.end_object();
  }
  if (state.begun && reason.empty()) {
    write_logprobs(json, results, answer);
  } else {
    json.key("logprobs").null();
  }
  json.key("finish_reason").string_or_null(reason);
  json.end_object().end_array();
  if (results.job.fields.continuous_usage) {
    write_usage(json.key("usage"), results);
  } else if (results.job.fields.include_usage) {
    json.key("usage").null();
  }
  return sse_event(json.end_object().take());
}

// Of chat: the role. With echo: the prompt.
std::string OpenAiPresenter::first_chunk(const Results& results, const Answer& answer) {
  Told& state = told(results, answer);
  if (state.begun) return {};
  std::string out;
  if (chat_) out = chunk(results, answer, "", "");
  state.begun = true;
  if (results.job.fields.echo) out += chunk(results, answer, prompt_text(results, answer), "");
  return out;
}

std::string OpenAiPresenter::on_token(const Results& results, Answer& answer) {
  std::string out = first_chunk(results, answer);
  const std::string text = feed(results, answer);
  return out += chunk(results, answer, text, "");
}

std::string OpenAiPresenter::on_finish(const Results& results, Answer& answer) {
  std::string out = first_chunk(results, answer);
  const std::string rest = feed(results, answer) + told(results, answer).filter.finish();
  if (!rest.empty()) out += chunk(results, answer, rest, "");
  return out += chunk(results, answer, "", reason_of(results, answer));
}

std::string OpenAiPresenter::on_end(const Results& results) {
  std::string out;
  if (results.job.fields.include_usage) {
    JsonWriter json;
    begin_object(json, results, true);
    write_usage(json.key("choices").begin_array().end_array().key("usage"), results);
    out = sse_event(json.end_object().take());
  }
  return out += "data: [DONE]\n\n";
}

// ---- the whole answer

void OpenAiPresenter::write_choice(JsonWriter& json, const Results& results, const Answer& answer) {
  std::string text = results.job.fields.echo ? prompt_text(results, answer) : std::string();
  text += feed(results, answer);
  text += told(results, answer).filter.finish();
  json.begin_object().member("index", answer.number);
  if (chat_) {
    json.key("message").begin_object().member("role", "assistant").member("content", text);
    json.key("refusal").null().end_object();
  } else {
    json.member("text", text);
  }
  write_logprobs(json, results, answer);
  json.member("finish_reason", reason_of(results, answer)).end_object();
}

HttpResponse OpenAiPresenter::whole(const Results& results) {
  JsonWriter json;
  begin_object(json, results, false);
  json.key("choices").begin_array();
  for (const Answer& answer : results.answers) write_choice(json, results, answer);
  write_usage(json.end_array().key("usage"), results);
  json.end_object();
  HttpResponse response;
  response.content_type = "application/json";
  response.body = json.take();
  return response;
}

}  // namespace

std::unique_ptr<Presenter> openai_presenter(const Tokenizer& tokenizer, Api api) {
  return std::make_unique<OpenAiPresenter>(tokenizer, api);
}

}  // namespace lorry
