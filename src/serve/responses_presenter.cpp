// How a response is told: as one object, or as the events that make it up.
#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "serve/answer_pieces.h"
#include "serve/json_writer.h"
#include "serve/openai_logprobs.h"
#include "serve/responses_api.h"

namespace lorry {

namespace {

// One of a response's outputs: the message, or a call of a function.
struct Item {
  bool is_call = false;
  std::string id, call_id, name;
  std::string text;  // of a call: its arguments
  std::string_view status = "in_progress";
};

class ResponsePresenter final : public Presenter {
 public:
  explicit ResponsePresenter(const Tokenizer& tokenizer)
      : tokenizer_(tokenizer), id_("resp_" + random_id()) {}

  Dialect dialect() const override { return Dialect::openai; }
  HttpHeaders stream_headers(const Results&) override { return {}; }
  std::string on_token(const Results& results, Answer& answer) override;
  std::string on_finish(const Results& results, Answer& answer) override;
  std::string on_end(const Results& results) override;
  std::string on_error(const ApiError& error) override;
  HttpResponse whole(const Results& results) override;

 private:
  void begin(const Results& results, std::string& out);
  void take(const AnswerPiece& piece, const Answer& answer, std::string& out);
  void finish(const Results& results, const Answer& answer, std::string& out);
  void add_text(std::string_view text, const Answer& answer, std::string& out);
  void add_call(const ToolCallPiece& piece, const Answer& answer, std::string& out);
  void open(Item item, std::string& out);
  void close(std::string_view status, const Answer& answer, std::string& out);
  std::string_view status_of(const Answer& answer) const;

  // Appends an event whose members `write` writes; nothing where the answer is told whole.
  template <class F>
  void event(std::string& out, std::string_view type, F&& write) {
    if (!streams_) return;
    JsonWriter json;
    json.begin_object().member("type", type).member("sequence_number", n_events_++);
    write(json);
    out += fmt::format("event: {}\n{}", type, sse_event(json.end_object().take()));
  }
  // Members of an event of the last item.
  void place(JsonWriter& json) const {
    json.member("item_id", items_.back().id).member("output_index", items_.size() - 1);
    if (!items_.back().is_call) json.member("content_index", 0);
  }
  void write_logprobs(JsonWriter& json, const Answer& answer, LoggedSoFar& so_far) const;
  void write_part(JsonWriter& json, const Item& item, const Answer* answer) const;
  void write_item(JsonWriter& json, const Item& item, const Answer* answer) const;
  void write_response(JsonWriter& json, const Results& results, std::string_view status) const;

  const Tokenizer& tokenizer_;
  const std::string id_;
  std::optional<AnswerPieces> pieces_;  // from the first token on
  bool streams_ = false, logs_ = false;
  int64_t n_events_ = 0;
  std::vector<Item> items_;  // the last one may be open
  LoggedSoFar logged_;       // of deltas
};

// ---- objects

void ResponsePresenter::write_logprobs(JsonWriter& json, const Answer& answer,
                                       LoggedSoFar& so_far) const {
  json.key("logprobs");
  if (logs_) {
    write_token_logprobs(json, tokenizer_, answer, so_far);
  } else {
    json.begin_array().end_array();
  }
}

// `answer`: null where its log-probabilities are not told yet.
void ResponsePresenter::write_part(JsonWriter& json, const Item& item, const Answer* answer) const {
  json.begin_object().member("type", "output_text").member("text", item.text);
  json.key("annotations").begin_array().end_array();
  if (LoggedSoFar from_the_first; answer != nullptr) {
    write_logprobs(json, *answer, from_the_first);
  } else {
    json.key("logprobs").begin_array().end_array();
  }
  json.end_object();
}

void ResponsePresenter::write_item(JsonWriter& json, const Item& item, const Answer* answer) const {
  json.begin_object().member("id", item.id).member("status", item.status);
  if (item.is_call) {
    json.member("type", "function_call").member("call_id", item.call_id);
    json.member("name", item.name).member("arguments", item.text);
  } else {
    json.member("type", "message").member("role", "assistant").key("content").begin_array();
    if (item.status != "in_progress") write_part(json, item, answer);
    json.end_array();
  }
  json.end_object();
}

void ResponsePresenter::write_response(JsonWriter& json, const Results& results,
                                       std::string_view status) const {
  const Answer& answer = results.answers.front();
  json.begin_object().member("id", id_).member("object", "response");
  json.member("created_at", results.job.created).member("model", results.job.model);
  json.member("status", status).key("error").null().key("incomplete_details");
  if (status == "incomplete") {
    json.begin_object().member("reason", "max_output_tokens").end_object();
  } else {
    json.null();
  }
  json.key("output").begin_array();
  for (const Item& item : items_) write_item(json, item, &answer);
  json.end_array().raw(results.job.echo).key("usage");
  if (!answer.finish) {
    json.null().end_object();
    return;
  }
  const int64_t prompt = results.prompt_tokens();
  const int64_t generated = results.generated_tokens();
  json.begin_object().member("input_tokens", prompt).key("input_tokens_details").begin_object();
  json.member("cached_tokens", std::min<int64_t>(answer.finish->cached_tokens, prompt))
      .end_object();
  json.member("output_tokens", generated).key("output_tokens_details").begin_object();
  json.member("reasoning_tokens", 0).end_object();
  json.member("total_tokens", prompt + generated).end_object().end_object();
}

// ---- how it grows

void ResponsePresenter::open(Item item, std::string& out) {
  items_.push_back(std::move(item));
  event(out, "response.output_item.added", [&](JsonWriter& json) {
    json.member("output_index", items_.size() - 1);
    write_item(json.key("item"), items_.back(), nullptr);
  });
  if (items_.back().is_call) return;
  event(out, "response.content_part.added", [&](JsonWriter& json) {
    place(json);
    write_part(json.key("part"), items_.back(), nullptr);
  });
}

void ResponsePresenter::close(std::string_view status, const Answer& answer, std::string& out) {
  if (items_.empty() || items_.back().status != "in_progress") return;
  Item& item = items_.back();
  item.status = status;
  if (item.is_call) {
    event(out, "response.function_call_arguments.done", [&](JsonWriter& json) {
      place(json);
      json.member("name", item.name).member("arguments", item.text);
    });
  } else {
    event(out, "response.output_text.done", [&](JsonWriter& json) {
      place(json);
      LoggedSoFar from_the_first;
      json.member("text", item.text);
      write_logprobs(json, answer, from_the_first);
    });
    event(out, "response.content_part.done", [&](JsonWriter& json) {
      place(json);
      write_part(json.key("part"), item, &answer);
    });
  }
  event(out, "response.output_item.done", [&](JsonWriter& json) {
    json.member("output_index", items_.size() - 1);
    write_item(json.key("item"), item, &answer);
  });
}

void ResponsePresenter::add_text(std::string_view text, const Answer& answer, std::string& out) {
  if (items_.empty()) open({false, "msg_" + random_id(), {}, {}, {}}, out);
  items_.back().text += text;
  event(out, "response.output_text.delta", [&](JsonWriter& json) {
    place(json);
    json.member("delta", text);
    write_logprobs(json, answer, logged_);
  });
}

void ResponsePresenter::add_call(const ToolCallPiece& piece, const Answer& answer,
                                 std::string& out) {
  if (!piece.id.empty()) {
    close("completed", answer, out);
    open({true, "fc_" + random_id(), piece.id, piece.name, {}}, out);
  }
  if (piece.arguments.empty()) return;
  items_.back().text += piece.arguments;
  event(out, "response.function_call_arguments.delta", [&](JsonWriter& json) {
    place(json);
    json.member("delta", piece.arguments);
  });
}

void ResponsePresenter::take(const AnswerPiece& piece, const Answer& answer, std::string& out) {
  if (!piece.text.empty()) add_text(piece.text, answer, out);
  for (const ToolCallPiece& call : piece.calls) add_call(call, answer, out);
}

void ResponsePresenter::begin(const Results& results, std::string& out) {
  if (pieces_) return;
  pieces_.emplace(results);
  streams_ = results.job.fields.stream;
  logs_ = results.job.fields.logprobs;
  for (const char* type : {"response.created", "response.in_progress"}) {
    event(out, type,
          [&](JsonWriter& json) { write_response(json.key("response"), results, "in_progress"); });
  }
}

std::string_view ResponsePresenter::status_of(const Answer& answer) const {
  if (pieces_->stopped()) return "completed";
  switch (answer.finish->reason) {
    case FinishReason::length:
      return "incomplete";
    case FinishReason::cancelled:
    case FinishReason::failed:
      return "cancelled";
    case FinishReason::eos_token:
    case FinishReason::stop_sequence:
    case FinishReason::dead_end:
      break;
  }
  return "completed";
}

void ResponsePresenter::finish(const Results& results, const Answer& answer, std::string& out) {
  begin(results, out);
  take(pieces_->last(results, answer), answer, out);
  if (items_.empty()) open({false, "msg_" + random_id(), {}, {}, {}}, out);
  close(status_of(answer) == "completed" ? "completed" : "incomplete", answer, out);
}

// ---- the stream

std::string ResponsePresenter::on_token(const Results& results, Answer& answer) {
  std::string out;
  begin(results, out);
  take(pieces_->next(results, answer), answer, out);
  return out;
}

std::string ResponsePresenter::on_finish(const Results& results, Answer& answer) {
  std::string out;
  finish(results, answer, out);
  return out;
}

std::string ResponsePresenter::on_end(const Results& results) {
  std::string out;
  const std::string_view status = status_of(results.answers.front());
  event(out, status == "completed" ? "response.completed" : "response.incomplete",
        [&](JsonWriter& json) { write_response(json.key("response"), results, status); });
  return out;
}

std::string ResponsePresenter::on_error(const ApiError& error) {
  streams_ = true;
  std::string out;
  event(out, "error", [&](JsonWriter& json) {
    json.member("code", "server_error").member("message", error.message);
    json.key("param").string_or_null(error.param);
  });
  return out;
}

HttpResponse ResponsePresenter::whole(const Results& results) {
  std::string nothing;
  const Answer& answer = results.answers.front();
  finish(results, answer, nothing);
  JsonWriter json;
  write_response(json, results, status_of(answer));
  HttpResponse response;
  response.content_type = "application/json";
  response.body = json.take();
  return response;
}

}  // namespace

std::unique_ptr<Presenter> response_presenter(const Tokenizer& tokenizer) {
  return std::make_unique<ResponsePresenter>(tokenizer);
}

}  // namespace lorry
