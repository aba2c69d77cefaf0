// `lorry logits`: the logits of given tokens, through the engine's own path, for comparing Lorry
// with anything else.
#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/error.h"
#include "base/json.h"
#include "cli/commands.h"
#include "cli/model_flags.h"
#include "cli/progress_line.h"
#include "cli/ranks.h"
#include "cli/values.h"
#include "engine/engine.h"
#include "serve/adapter_choice.h"
#include "weights/safetensors.h"

namespace lorry {

namespace {

constexpr int64_t kMaxBatchTokens = 4096;  // more tokens than that take more steps

struct Flags {
  ModelFlags model;
  RankFlags ranks;
  std::string prompts;
  std::string out;
  std::vector<std::string> adapters;
  bool one_by_one = false;
};

struct Prompt {
  std::vector<int32_t> tokens;
  AdapterRef adapter;
};

AdapterRef read_adapter(const json::value& v, const std::string& where) {
  try {
    if (v.is_object()) return read_merge(v, "adapter");
    if (v.is_array()) return read_weighted(v, "adapter");
  } catch (const Error& e) {
    fail(Code::bad_file, "{}: {}", where, e.what());
  }
  if (v.is_string()) return AdapterRef(std::string(v.get_string()));
  if (v.is_null()) return {};
  fail(Code::bad_file,
       "{}: adapter: expected a name, null, {{\"ids\": [...], \"weights\": [...], "
       "\"merge_strategy\": ...}} or [{{\"id\": ..., \"weight\": ...}}]",
       where);
}

Prompt read_prompt(const json::value& value, const std::string& where) {
  const json::object* o = value.if_object();
  if (o == nullptr) fail(Code::bad_file, "{}: expected an object", where);
  Prompt prompt;
  bool has_tokens = false;
  for (const auto& [key, v] : *o) {
    if (key == "tokens" && v.is_array()) {
      has_tokens = true;
      for (const json::value& token : v.get_array()) {
        boost::system::error_code error;
        prompt.tokens.push_back(token.to_number<int32_t>(error));
        if (error) fail(Code::bad_file, "{}: tokens holds what is no token id", where);
      }
    } else if (key == "adapter") {
      prompt.adapter = read_adapter(v, where);
    } else {
      fail(Code::bad_file, "{}: {}: expected tokens (a list of ids) and adapter", where,
           quote(std::string_view(key)));
    }
  }
  if (!has_tokens || prompt.tokens.empty()) fail(Code::bad_file, "{}: has no tokens", where);
  return prompt;
}

std::vector<Prompt> read_prompts(const std::string& path) {
  const json::value root = parse_json_file(path);
  const json::array* list = root.if_array();
  if (list == nullptr || list->empty()) {
    fail(Code::bad_file, "{}: expected a list of {{\"tokens\": [...], \"adapter\": name or null}}",
         path);
  }
  std::vector<Prompt> prompts;
  for (const json::value& value : *list) {
    prompts.push_back(read_prompt(value, fmt::format("{}: prompt {}", path, prompts.size())));
  }
  return prompts;
}

// All prompts fit into the engine at once.
void size_for(EngineOptions& o, const std::vector<Prompt>& prompts) {
  const auto n = static_cast<int32_t>(prompts.size());
  int64_t tokens = 0;
  int64_t blocks = 1;
  for (const Prompt& p : prompts) {
    const auto length = static_cast<int64_t>(p.tokens.size());
    tokens += length;
    blocks += length / kBlockTokens + 1;
  }
  o.max_requests = n + 1;
  o.max_sequences = n;
  o.max_batch_tokens = std::max(n, static_cast<int32_t>(std::min(tokens, kMaxBatchTokens)));
  o.max_logit_rows = o.max_batch_tokens;
  o.prefix_cache = false;
  if (o.kv_tokens == 0) o.kv_tokens = (blocks + 1) * kBlockTokens;
}

// Waits for a request's end; perhaps does something at that moment, on the engine's thread.
class Ending : public RequestSink {
 public:
  explicit Ending(std::function<void()> then = {}) : then_(std::move(then)) {}
  void on_token(const TokenEvent&) override {}
  void on_finish(const FinishEvent& event) override {
    if (then_) then_();
    promise_.set_value(event);
  }
  FinishEvent wait() { return promise_.get_future().get(); }

 private:
  std::function<void()> then_;
  std::promise<FinishEvent> promise_;
};

// Keeps the rows of one prompt, [tokens, vocab].
class Rows : public Ending {
 public:
  Rows(size_t tokens, int32_t vocab)
      : vocab_(static_cast<size_t>(vocab)), values_(tokens * vocab_) {}

  void on_logits(int64_t first, int64_t n, const float* rows, int64_t pitch) override {
    for (int64_t i = 0; i < n; ++i) {
      std::memcpy(values_.data() + static_cast<size_t>(first + i) * vocab_, rows + i * pitch,
                  vocab_ * sizeof(float));
    }
  }

  Tensor tensor() {
    return view(values_.data(), Dtype::f32,
                {static_cast<int64_t>(values_.size() / vocab_), static_cast<int64_t>(vocab_)});
  }

 private:
  size_t vocab_;
  std::vector<float> values_;
};

class LogitsRun {
 public:
  LogitsRun(Engine& engine, const std::vector<Prompt>& prompts)
      : engine_(engine), prompts_(prompts) {
    const int32_t vocab = engine.info().spec.vocab;
    for (const Prompt& p : prompts) rows_.push_back(std::make_shared<Rows>(p.tokens.size(), vocab));
  }

  void one_by_one() {
    for (size_t i = 0; i < prompts_.size(); ++i) {
      submit(i);
      wait(i);
    }
  }

  // The adapters are loaded first. Then one more request ends, and at that moment, between two
  // steps of the engine, all prompts are handed in: the next step finds them together.
  void together() {
    load_adapters();
    std::exception_ptr error;
    const auto all_in = std::make_shared<Ending>([&] {
      try {
        for (size_t i = 0; i < prompts_.size(); ++i) submit(i);
      } catch (const Error&) {
        error = std::current_exception();
      }
    });
    engine_.submit(probe("", all_in));
    all_in->wait();
    if (error) std::rethrow_exception(error);
    for (size_t i = 0; i < prompts_.size(); ++i) wait(i);
  }

  std::map<std::string, Tensor> tensors() const {
    std::map<std::string, Tensor> tensors;
    for (size_t i = 0; i < rows_.size(); ++i) {
      tensors[fmt::format("logits.{}", i)] = rows_[i]->tensor();
    }
    return tensors;
  }

 private:
  [[noreturn]] void refuse(size_t i, const Error& e) const {
    const std::string adapter = prompts_[i].adapter.label();
    fail(e.code(), "prompt {}{}: {}", i, adapter.empty() ? "" : " with adapter " + quote(adapter),
         e.what());
  }

  static Request probe(const AdapterRef& adapter, std::shared_ptr<RequestSink> sink) {
    Request r;
    r.prompt = {0};
    r.adapter = adapter;
    r.sink = std::move(sink);
    return r;
  }

  void load_adapters() {
    std::set<std::string> done;
    for (size_t i = 0; i < prompts_.size(); ++i) {
      const AdapterRef& adapter = prompts_[i].adapter;
      if (adapter.empty() || !done.insert(adapter.key()).second) continue;
      const auto sink = std::make_shared<Ending>();
      engine_.submit(probe(adapter, sink));
      const FinishEvent event = sink->wait();
      if (event.error) refuse(i, *event.error);
    }
  }

  void submit(size_t i) {
    Request r;
    r.prompt = prompts_[i].tokens;
    r.adapter = prompts_[i].adapter;
    r.want_logits = true;
    r.sink = rows_[i];
    try {
      engine_.submit(std::move(r));
    } catch (const Error& e) {
      refuse(i, e);
    }
  }

  void wait(size_t i) {
    const FinishEvent event = rows_[i]->wait();
    if (event.error) refuse(i, *event.error);
  }

  Engine& engine_;
  const std::vector<Prompt>& prompts_;
  std::vector<std::shared_ptr<Rows>> rows_;
};

int run(const Flags& flags) {
  Log log({.level = LogLevel::warn});
  const std::vector<Prompt> prompts = read_prompts(flags.prompts);
  const ModelPlace place = find_model(flags.model.model, flags.model.download);
  EngineOptions options = engine_options(flags.model, place);
  for (const std::string& adapter : flags.adapters) {
    parse_named_path(adapter);  // here a name alone means nothing
    add_adapter(options, adapter);
  }
  size_for(options, prompts);
  Ranks ranks(flags.ranks);
  ranks.set(options);
  if (!ranks.leads()) return ranks.follow(options);
  {
    ProgressLine line(progress_place(!flags.model.download.no_progress));
    options.progress = line.sink();
    Engine engine(std::move(options), log);
    line.end();
    LogitsRun logits(engine, prompts);
    flags.one_by_one ? logits.one_by_one() : logits.together();
    write_safetensors(flags.out, logits.tensors());
  }
  ranks.finish();
  return 0;
}

}  // namespace

Command add_logits(CLI::App& lorry) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& app = *lorry.add_subcommand("logits", "Write the logits of given tokens to a file");
  const char* group = "Prompts";
  app.add_option("--prompts", flags->prompts,
                 "JSON: [{\"tokens\": [1, 2, ...], \"adapter\": NAME, null or a merge}, ...]")
      ->required()
      ->group(group)
      ->type_name(kFile);
  app.add_option("--adapter", flags->adapters, "Adapter, may be given again (default: none)")
      ->allow_extra_args(false)
      ->group(group)
      ->type_name(kNamedFolder);
  app.add_option("--out", flags->out,
                 "safetensors file: logits.0, logits.1, ..., each float32 [tokens, vocabulary]")
      ->required()
      ->group(group)
      ->type_name(kFile);
  app.add_flag("--one-by-one", flags->one_by_one, "One prompt after the other, not as one batch")
      ->group(group);
  add_model_flags(app, flags->model, true);
  add_rank_flags(app, flags->ranks);
  add_progress_flag(app, flags->model.download.no_progress, "Logging");
  app.footer(
      "Example\n"
      "  lorry logits /models/mixtral --adapter sql=/adapters/sql --dtype float32 \\\n"
      "    --prompts prompts.json --out logits.safetensors\n"
      "A merge is {\"ids\": [\"a\", \"b\"], \"weights\": [0.7, 0.3], \"merge_strategy\": "
      "\"ties\",\n"
      "\"density\": 0.5}, or [{\"id\": \"a\", \"weight\": 0.7}, ...] for the weighted sum.\n"
      "All prompts run as one mixed batch. The values do not depend on that, nor on "
      "--prefill-chunk,\n"
      "--threads: not by a bit; nor on --isa, but for amx in bfloat16.");
  return {&app, [flags] { return run(*flags); }};
}

}  // namespace lorry
