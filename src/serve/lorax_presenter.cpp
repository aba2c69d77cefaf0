// How LoRAX's dialect tells a generation: GenerateResponse, its headers, and its stream.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "base/text.h"
#include "serve/json_writer.h"
#include "serve/lorax_api.h"

namespace lorry {

namespace {

std::string_view reason_of(const Answer& answer) {
  switch (answer.finish->reason) {
    case FinishReason::length:
      return "length";
    case FinishReason::eos_token:
      return "eos_token";
    case FinishReason::stop_sequence:
    case FinishReason::dead_end:  // LoRAX's clients know three reasons
      return "stop_sequence";
    case FinishReason::cancelled:
    case FinishReason::failed:
      break;
  }
  return "abort";
}

std::string milliseconds(double seconds) {
  return std::to_string(static_cast<int64_t>(std::llround(std::max(seconds, 0.0) * 1000)));
}

double since(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

class LoraxPresenter final : public Presenter {
 public:
  explicit LoraxPresenter(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  Dialect dialect() const override { return Dialect::lorax; }
  HttpHeaders stream_headers(const Results& results) override { return known_headers(results); }
  std::string on_token(const Results& results, Answer& answer) override;
  std::string on_finish(const Results& results, Answer& answer) override;
  std::string on_end(const Results&) override { return {}; }
  std::string on_error(const ApiError& error) override {
    return sse_event(error_json(error, Dialect::lorax));
  }
  HttpResponse whole(const Results& results) override;

 private:
  static bool may_be_last(const Results& results, const Answer& answer);
  static HttpHeaders known_headers(const Results& results);
  static void add_timings(const Results& results, const Answer& answer, HttpHeaders* headers);
  std::string event(const Results& results, const Answer& answer, size_t i, bool last) const;
  void write_token(JsonWriter& json, const TokenRecord& token) const;
  void write_tokens(JsonWriter& json, const Results& results, const Answer& answer) const;
  void write_details(JsonWriter& json, const Results& results, const Answer& best) const;
  static std::string text_of(const Results& results, const Answer& answer);

  const Tokenizer& tokenizer_;
};

// The engine's finish follows a token that ends an answer at once, and LoRAX tells both in one
// event: such a token waits for it.
bool LoraxPresenter::may_be_last(const Results& results, const Answer& answer) {
  const Request& request = results.job.request;
  const auto n = static_cast<int64_t>(answer.tokens.size());
  if (n >= request.max_new_tokens || answer.tokens.back().special) return true;
  // Byte tokens get their text when their run ends, but a stop text among them counts at once.
  if (!request.stop.empty() && answer.tokens.back().text.empty()) return true;
  return std::any_of(request.stop.begin(), request.stop.end(), [&](const std::string& stop) {
    const size_t tail = stop.size() + answer.tokens.back().text.size();
    const size_t from = answer.text.size() > tail ? answer.text.size() - tail : 0;
    return answer.text.find(stop, from) != std::string::npos;
  });
}

std::string LoraxPresenter::text_of(const Results& results, const Answer& answer) {
  if (!results.job.fields.return_full_text) return answer.text;
  return results.job.prompts[answer.prompt].text + answer.text;
}

std::string LoraxPresenter::on_token(const Results& results, Answer& answer) {
  const size_t end = answer.tokens.size() - (may_be_last(results, answer) ? 1 : 0);
  std::string out;
  for (; answer.told < end; ++answer.told) out += event(results, answer, answer.told, false);
  return out;
}

std::string LoraxPresenter::on_finish(const Results& results, Answer& answer) {
  std::string out;
  // An answer that ended without a last token (aborted): the final event repeats the newest.
  if (answer.told == answer.tokens.size() && answer.told > 0) --answer.told;
  for (; answer.told < answer.tokens.size(); ++answer.told) {
    const bool last = answer.told + 1 == answer.tokens.size();
    out += event(results, answer, answer.told, last);
  }
  return out;
}

std::string LoraxPresenter::event(const Results& results, const Answer& answer, size_t i,
                                  bool last) const {
  JsonWriter json;
  json.begin_object().key("token");
  write_token(json, answer.tokens[i]);
  if (last) {
    json.member("generated_text", text_of(results, answer));
    json.key("details").begin_object();
    json.member("finish_reason", reason_of(answer));
    json.member("prompt_tokens", results.job.prompts[answer.prompt].ids.size());
    json.member("generated_tokens", answer.tokens.size());
    json.key("seed");
    results.job.request.sampling.sample ? json.value(answer.seed) : json.null();
    json.end_object();
  } else {
    json.key("generated_text").null().key("details").null();
  }
  return sse_event(json.end_object().take());
}

void LoraxPresenter::write_token(JsonWriter& json, const TokenRecord& token) const {
  json.begin_object();
  json.member("id", token.id).member("text", token.text).member("logprob", token.logprob);
  json.member("special", token.special).member("skipped", token.skipped);
  if (!token.alternatives.empty()) {
    json.key("alternative_tokens").begin_array();
    for (const TokenProbability& other : token.alternatives) {
      json.begin_object().member("id", other.id);
      json.member("text", token_label(tokenizer_, other.id)).member("logprob", other.logprob);
      json.end_object();
    }
    json.end_array();
  }
  json.end_object();
}

void LoraxPresenter::write_tokens(JsonWriter& json, const Results& results,
                                  const Answer& answer) const {
  json.member("finish_reason", reason_of(answer));
  json.member("prompt_tokens", results.job.prompts[answer.prompt].ids.size());
  json.member("generated_tokens", answer.tokens.size());
  json.member("skipped_tokens", answer.finish->skipped_tokens);
  json.key("seed");
  results.job.request.sampling.sample ? json.value(answer.seed) : json.null();

  json.key("prefill").begin_array();
  if (results.job.fields.decoder_input_details) {
    const std::vector<int32_t>& ids = results.job.prompts[answer.prompt].ids;
    for (size_t i = 0; i < ids.size(); ++i) {
      json.begin_object().member("id", ids[i]).member("text", token_label(tokenizer_, ids[i]));
      json.key("logprob");
      const bool known = i > 0 && i <= answer.prompt_tokens.size();
      known ? json.value(answer.prompt_tokens[i - 1].logprob) : json.null();
      json.end_object();
    }
  }
  json.end_array().key("tokens").begin_array();
  for (const TokenRecord& token : answer.tokens) write_token(json, token);
  json.end_array();
}

void LoraxPresenter::write_details(JsonWriter& json, const Results& results,
                                   const Answer& best) const {
  json.key("details").begin_object();
  write_tokens(json, results, best);
  if (results.answers.size() > 1) {
    json.key("best_of_sequences").begin_array();
    for (const Answer& answer : results.answers) {
      if (&answer == &best) continue;
      json.begin_object().member("generated_text", text_of(results, answer));
      write_tokens(json, results, answer);
      json.end_object();
    }
    json.end_array();
  }
  json.end_object();
}

HttpHeaders LoraxPresenter::known_headers(const Results& results) {
  HttpHeaders headers;
  headers.emplace_back("x-compute-type", "cpu");
  headers.emplace_back("x-compute-characters", std::to_string(results.job.input_characters));
  headers.emplace_back("x-prompt-tokens", std::to_string(results.prompt_tokens()));
  headers.emplace_back("x-validation-time", milliseconds(results.job.validation_seconds));
  headers.emplace_back("x-model-id", percent_encode(results.job.model, true));
  if (const AdapterRef& adapter = results.job.request.adapter; !adapter.empty()) {
    headers.emplace_back("x-adapter-id", percent_encode(adapter.label(), true));
    headers.emplace_back("x-adapter-source", to_string(adapter.parts.front().source));
  }
  return headers;
}

void LoraxPresenter::add_timings(const Results& results, const Answer& answer,
                                 HttpHeaders* headers) {
  const FinishEvent& finish = *answer.finish;
  const auto now = std::chrono::steady_clock::now();
  const double total = since(results.job.received, now);
  const double inference = finish.prefill_seconds + finish.decode_seconds;
  const int64_t generated = results.generated_tokens();
  const auto n = static_cast<double>(std::max<size_t>(answer.tokens.size(), 1));
  headers->emplace_back("x-compute-time", fmt::format("{:.3f}", total));
  headers->emplace_back("x-total-time", milliseconds(total));
  headers->emplace_back("x-generated-tokens", std::to_string(generated));
  headers->emplace_back("x-skipped-tokens", std::to_string(results.skipped_tokens()));
  headers->emplace_back("x-total-tokens", std::to_string(results.prompt_tokens() + generated));
  headers->emplace_back("x-queue-time", milliseconds(finish.queue_seconds));
  headers->emplace_back("x-inference-time", milliseconds(inference));
  headers->emplace_back("x-time-per-token", milliseconds(inference / n));
  headers->emplace_back("x-time-to-first-token",
                        milliseconds(since(results.job.received, results.first_token)));
  headers->emplace_back("x-time-per-output-token",
                        milliseconds(finish.decode_seconds / std::max(n - 1, 1.0)));
}

HttpResponse LoraxPresenter::whole(const Results& results) {
  const Answer& best = *std::max_element(
      results.answers.begin(), results.answers.end(),
      [](const Answer& a, const Answer& b) { return a.mean_logprob() < b.mean_logprob(); });
  JsonWriter json;
  if (results.job.as_array) json.begin_array();
  json.begin_object().member("generated_text", text_of(results, best));
  const Fields& fields = results.job.fields;
  if (fields.details || fields.decoder_input_details) write_details(json, results, best);
  json.end_object();
  if (results.job.as_array) json.end_array();

  HttpResponse response;
  response.content_type = "application/json";
  response.body = json.take();
  response.headers = known_headers(results);
  add_timings(results, best, &response.headers);
  return response;
}

}  // namespace

std::unique_ptr<Presenter> lorax_presenter(const Tokenizer& tokenizer) {
  return std::make_unique<LoraxPresenter>(tokenizer);
}

}  // namespace lorry
