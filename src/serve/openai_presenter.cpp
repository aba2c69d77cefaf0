// How OpenAI's dialect tells a generation: completion objects and their chunks.
#include <algorithm>
#include <set>

#include "serve/json_writer.h"
#include "serve/openai_api.h"
#include "serve/stop_filter.h"
#include "serve/tool_calls.h"

namespace lorry {

namespace {

// What was told of one answer, and what is held back.
struct Told {
  Told(const std::vector<std::string>& stops, const ToolPlan& plan) : filter(stops), tools(plan) {}
  StopFilter filter;
  ToolCallParser tools;
  size_t fed = 0;          // bytes of Answer::text that the filter has seen
  size_t tokens = 0;       // whose log-probabilities were told
  size_t text_offset = 0;  // characters of the tokens told
  bool begun = false;      // the first chunk was made
  bool marked = false;     // the parser of calls knows of the marker
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
  std::string_view new_text(const Results& results, const Answer& answer);
  AnswerPiece piece(const Results& results, const Answer& answer);
  AnswerPiece last_piece(const Results& results, const Answer& answer);
  std::string first_chunk(const Results& results, const Answer& answer);
  std::string chunk(const Results& results, const Answer& answer, const AnswerPiece& fresh,
                    std::string_view reason);
  void begin_object(JsonWriter& json, const Results& results, bool streaming) const;
  void write_choice(JsonWriter& json, const Results& results, const Answer& answer, size_t index);
  static void write_message(JsonWriter& json, const AnswerPiece& all);
  static std::vector<const Answer*> chosen(const Results& results);
  void write_logprobs(JsonWriter& json, const Results& results, const Answer& answer);
  void write_chat_logprobs(JsonWriter& json, const Results& results, const Answer& answer);
  void write_chat_token(JsonWriter& json, int32_t id, float logprob) const;
  void write_completion_logprobs(JsonWriter& json, const Results& results, const Answer& answer);
  void write_usage(JsonWriter& json, const Results& results) const;
  bool wants_logprobs(const Results& results) const {
    const Fields& fields = results.job.fields;
    return chat_ ? fields.logprobs : fields.alternatives.has_value();
  }
  std::string_view reason_of(const Results& results, const Answer& answer);
  std::string prompt_text(const Results& results, const Answer& answer) const;

  const Tokenizer& tokenizer_;
  const bool chat_;
  const std::string id_;
  std::vector<Told> told_;  // by answer
};

Told& OpenAiPresenter::told(const Results& results, const Answer& answer) {
  while (told_.size() < results.answers.size()) {
    told_.emplace_back(results.job.request.stop, results.job.tools);
  }
  return told_[answer.number];
}

// The answer's text from state.fed on.
std::string_view OpenAiPresenter::new_text(const Results& results, const Answer& answer) {
  Told& state = told(results, answer);
  std::string_view fresh = std::string_view(answer.text).substr(state.fed);
  state.fed = answer.text.size();
  const std::vector<int32_t>& ids = results.job.request.stop_token_ids;
  if (!answer.tokens.empty() && !answer.tokens.back().special &&
      std::find(ids.begin(), ids.end(), answer.tokens.back().id) != ids.end()) {
    fresh.remove_suffix(std::min(fresh.size(), answer.tokens.back().text.size()));
  }
  return fresh;
}

void append(AnswerPiece& to, AnswerPiece more) {
  to.text += more.text;
  for (ToolCallPiece& call : more.calls) to.calls.push_back(std::move(call));
}

// The answer's new text, passed through the stop filter, and what of it are calls of functions.
AnswerPiece OpenAiPresenter::piece(const Results& results, const Answer& answer) {
  Told& state = told(results, answer);
  const size_t from = state.fed;
  std::string_view fresh = new_text(results, answer);
  if (results.job.tools.names.empty()) return {state.filter.push(fresh), {}};
  AnswerPiece out;
  if (answer.tool_marker && !state.marked) {
    const size_t n = std::min(*answer.tool_marker - from, fresh.size());
    append(out, state.tools.push(state.filter.push(fresh.substr(0, n)) + state.filter.finish()));
    append(out, state.tools.mark());
    state.marked = true;
    fresh.remove_prefix(n);
  }
  append(out, state.tools.push(state.filter.push(fresh)));
  return out;
}

// What was held back; the answer has its finish.
AnswerPiece OpenAiPresenter::last_piece(const Results& results, const Answer& answer) {
  Told& state = told(results, answer);
  AnswerPiece fresh = piece(results, answer);
  const std::string rest = state.filter.finish();
  if (results.job.tools.names.empty()) {
    fresh.text += rest;
    return fresh;
  }
  append(fresh, state.tools.push(rest));
  append(fresh, state.tools.finish());
  return fresh;
}

std::string_view OpenAiPresenter::reason_of(const Results& results, const Answer& answer) {
  const bool calls = told(results, answer).tools.n_calls() > 0;
  if (told(results, answer).filter.stopped()) return calls ? "tool_calls" : "stop";
  switch (answer.finish->reason) {
    case FinishReason::length:
      return "length";
    case FinishReason::eos_token:
    case FinishReason::stop_sequence:
    case FinishReason::dead_end:
      return calls ? "tool_calls" : "stop";
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
  if (!wants_logprobs(results)) {
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
                                   const AnswerPiece& fresh, std::string_view reason) {
  JsonWriter json;
  begin_object(json, results, true);
  json.key("choices").begin_array().begin_object().member("index", answer.number);
  const Told& state = told(results, answer);
  if (!chat_) {
    json.member("text", fresh.text);
  } else {
    json.key("delta").begin_object();
    if (!state.begun) json.member("role", "assistant");
    const bool has_text = fresh.calls.empty() || !fresh.text.empty();
    if (reason.empty() && has_text) json.member("content", fresh.text);
    if (!fresh.calls.empty()) write_tool_calls(json.key("tool_calls"), fresh.calls, true);
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
  if (chat_) out = chunk(results, answer, {}, "");
  state.begun = true;
  if (results.job.fields.echo) {
    out += chunk(results, answer, {prompt_text(results, answer), {}}, "");
  }
  return out;
}

std::string OpenAiPresenter::on_token(const Results& results, Answer& answer) {
  std::string out = first_chunk(results, answer);
  const AnswerPiece fresh = piece(results, answer);
  // Text that may become a call is held back for many tokens.
  const bool silent = fresh.empty() && !results.job.tools.names.empty() && !wants_logprobs(results);
  return silent ? out : out += chunk(results, answer, fresh, "");
}

std::string OpenAiPresenter::on_finish(const Results& results, Answer& answer) {
  std::string out = first_chunk(results, answer);
  const AnswerPiece rest = last_piece(results, answer);
  if (!rest.empty()) out += chunk(results, answer, rest, "");
  return out += chunk(results, answer, {}, reason_of(results, answer));
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

void OpenAiPresenter::write_message(JsonWriter& json, const AnswerPiece& all) {
  json.key("message").begin_object().member("role", "assistant").key("content");
  all.text.empty() && !all.calls.empty() ? json.null() : json.value(all.text);
  json.key("refusal").null();
  if (!all.calls.empty()) write_tool_calls(json.key("tool_calls"), whole_calls(all.calls), false);
  json.end_object();
}

void OpenAiPresenter::write_choice(JsonWriter& json, const Results& results, const Answer& answer,
                                   size_t index) {
  const AnswerPiece all = last_piece(results, answer);
  json.begin_object().member("index", index);
  if (chat_) {
    write_message(json, all);
  } else {
    const bool echo = results.job.fields.echo;
    json.member("text", (echo ? prompt_text(results, answer) : std::string()) + all.text);
  }
  write_logprobs(json, results, answer);
  json.member("finish_reason", reason_of(results, answer)).end_object();
}

// All, or with best_of the n most probable ones of each prompt.
std::vector<const Answer*> OpenAiPresenter::chosen(const Results& results) {
  std::vector<const Answer*> out;
  const auto made = static_cast<size_t>(results.job.answers_per_prompt);
  const auto wanted = static_cast<size_t>(results.job.fields.n.value_or(1));
  for (size_t first = 0; first < results.answers.size(); first += made) {
    std::vector<const Answer*> of_prompt;
    for (size_t i = 0; i < made; ++i) of_prompt.push_back(&results.answers[first + i]);
    if (wanted < made) {
      std::stable_sort(of_prompt.begin(), of_prompt.end(), [](const Answer* a, const Answer* b) {
        return a->mean_logprob() > b->mean_logprob();
      });
      of_prompt.resize(wanted);
    }
    out.insert(out.end(), of_prompt.begin(), of_prompt.end());
  }
  return out;
}

HttpResponse OpenAiPresenter::whole(const Results& results) {
  JsonWriter json;
  begin_object(json, results, false);
  json.key("choices").begin_array();
  size_t index = 0;
  for (const Answer* answer : chosen(results)) write_choice(json, results, *answer, index++);
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
