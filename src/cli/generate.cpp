// `lorry generate`: one prompt, its answer on standard output.
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <boost/json/array.hpp>
#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/environment.h"
#include "cli/model_flags.h"
#include "cli/sampling_flags.h"
#include "cli/talk.h"

namespace lorry {

namespace {

struct Flags {
  ModelFlags model;
  SamplingFlags sampling;
  std::string prompt;
  std::string adapter;
  bool chat = false;
};

int run(const Flags& flags) {
  Log log({.level = LogLevel::warn, .colour = may_colour()});
  const ModelPlace place = find_model(flags.model.model, flags.model.download);
  EngineOptions options = engine_options(flags.model, place);
  const std::string adapter = flags.adapter.empty() ? "" : add_adapter(options, flags.adapter);

  std::string prompt = flags.prompt;
  if (prompt == "-") prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  ProgressLine line(progress_place(!flags.model.download.no_progress));
  TalkSession session(place, std::move(options), log, line);
  Talk& talk = session.talk();
  std::vector<int32_t> tokens;
  if (flags.chat) {
    tokens = talk.encode_chat(json::array{{{"role", "user"}, {"content", prompt}}});
  } else {
    tokens = talk.encode(prompt);
  }
  Request request = make_request(flags.sampling, std::move(tokens), talk.longest());
  request.adapter = adapter;
  const Spoken answer = talk.ask(std::move(request));
  if (!answer.text.ends_with('\n')) fmt::print("\n");
  return answer.finish.reason == FinishReason::cancelled ? kInterrupted : 0;
}

}  // namespace

Command add_generate(CLI::App& lorry) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& app = *lorry.add_subcommand("generate", "Answer one prompt on standard output");
  const char* group = "Prompt";
  app.add_option("--prompt", flags->prompt, "The text to go on from; - reads standard input")
      ->required()
      ->group(group)
      ->type_name("TEXT");
  app.add_option("--adapter", flags->adapter,
                 "Adapter: a folder, or one of the demo's by its name (default: none)")
      ->group(group)
      ->type_name("NAME|NAME=FOLDER");
  app.add_flag("--chat", flags->chat, "Put the prompt into the model's chat template")
      ->group(group);
  add_model_flags(app, flags->model, false);
  add_sampling_flags(app, flags->sampling);
  add_progress_flag(app, flags->model.download.no_progress, "Logging");
  app.footer(
      "Examples\n"
      "  lorry generate --chat --adapter json --prompt 'Tell me about a cat.'\n"
      "  lorry generate /models/mixtral --adapter sql=/adapters/sql --prompt - < question.txt");
  return {&app, [flags] { return run(*flags); }};
}

}  // namespace lorry
