// How OpenAI's dialect tells a generation: completion objects and their chunks.
#include <algorithm>

#include "serve/answer_pieces.h"
#include "serve/json_writer.h"
#include "serve/openai_api.h"
#include "serve/openai_logprobs.h"

namespace lorry {

namespace {

// What was told of one answer.
struct Told {
  AnswerPieces pieces;
  LoggedSoFar logged = {};
  bool begun = false;  // the first chunk was made
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
  std::string first_chunk(const Results& results, const Answer& answer);
  std::string chunk(const Results& results, const Answer& answer, const AnswerPiece& fresh,
                    std::string_view reason);
  void begin_object(JsonWriter& json, const Results& results, bool streaming) const;
  void write_choice(JsonWriter& json, const Results& results, const Answer& answer, size_t index);
  static void write_message(JsonWriter& json, const AnswerPiece& all);
  static std::vector<const Answer*> chosen(const Results& results);
  void write_logprobs(JsonWriter& json, const Results& results, const Answer& answer);
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
    told_.push_back({AnswerPieces(results)});
  }
  return told_[answer.number];
}

std::string_view OpenAiPresenter::reason_of(const Results& results, const Answer& answer) {
  const AnswerPieces& pieces = told(results, answer).pieces;
  const bool calls = pieces.n_calls() > 0;
  if (pieces.stopped()) return calls ? "tool_calls" : "stop";
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

// ---- the stream

void OpenAiPresenter::write_logprobs(JsonWriter& json, const Results& results,
                                     const Answer& answer) {
  json.key("logprobs");
  LoggedSoFar& logged = told(results, answer).logged;
  if (!wants_logprobs(results)) {
    json.null();
  } else if (chat_) {
    write_token_logprobs(json.begin_object().key("content"), tokenizer_, answer, logged);
    json.key("refusal").null().end_object();
  } else {
    write_completion_logprobs(json, tokenizer_, results, answer, logged);
  }
}

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
  const AnswerPiece fresh = told(results, answer).pieces.next(results, answer);
  // Text that may become a call is held back for many tokens.
  const bool silent = fresh.empty() && !results.job.tools.names.empty() && !wants_logprobs(results);
  return silent ? out : out += chunk(results, answer, fresh, "");
}

std::string OpenAiPresenter::on_finish(const Results& results, Answer& answer) {
  std::string out = first_chunk(results, answer);
  const AnswerPiece rest = told(results, answer).pieces.last(results, answer);
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
  const AnswerPiece all = told(results, answer).pieces.last(results, answer);
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
