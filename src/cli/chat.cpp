// `lorry chat`: a conversation on the terminal, or over a pipe.
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <boost/json/array.hpp>
#include <fmt/format.h>

#include "base/error.h"
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
  std::vector<std::string> adapters;
  std::string system;
};

constexpr const char* kHelp =
    "/adapter NAME   answer with this adapter from now on; /adapter none: with the base model\n"
    "/adapters       list the adapters\n"
    "/reset          forget the conversation\n"
    "/quit           end; so does end of file\n"
    "Everything else is said to the model. Control-C ends an answer.\n";

class Conversation {
 public:
  Conversation(const Flags& flags, Talk& talk, std::string adapter)
      : flags_(flags), talk_(talk), adapter_(std::move(adapter)), terminal_(stdin_is_terminal()) {
    reset();
  }

  // Until end of file or /quit.
  void run() {
    if (terminal_) fmt::print(stderr, "{}; /help lists the commands\n", talk_.engine().info().name);
    for (std::string line; read_line(line);) {
      if (line.empty()) continue;
      if (line == "/quit" || line == "/exit") break;
      try {
        line.front() == '/' ? command(line) : say(line);
      } catch (const Error& e) {
        std::fflush(stdout);
        fmt::print(stderr, "{}\n", e.what());
      }
    }
  }

 private:
  bool read_line(std::string& line) {
    if (terminal_) fmt::print("{}> ", adapter_);
    std::fflush(stdout);
    if (!std::getline(std::cin, line)) return false;
    if (line.ends_with('\r')) line.pop_back();
    return true;
  }

  void reset() {
    messages_.clear();
    if (!flags_.system.empty()) add("system", flags_.system);
  }

  void add(const char* role, const std::string& content) {
    messages_.push_back(json::object{{"role", role}, {"content", content}});
  }

  // A turn that fails leaves the conversation as it was.
  void say(const std::string& text) {
    const json::array before = messages_;
    try {
      add("user", text);
      Request request =
          make_request(flags_.sampling, talk_.encode_chat(messages_), talk_.longest());
      request.adapter = adapter_;
      const Spoken answer = talk_.ask(std::move(request));
      if (!answer.text.ends_with('\n')) fmt::print("\n");
      add("assistant", answer.text);
    } catch (const Error& e) {
      messages_ = before;
      if (e.code() != Code::too_long) throw;
      fail(Code::too_long, "{} (/reset forgets the conversation)", e.what());
    }
  }

  void command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const size_t start = line.find_first_not_of(' ', space);
    const std::string argument = space == line.npos || start == line.npos ? "" : line.substr(start);
    if (name == "/adapter") {
      use_adapter(argument);
    } else if (name == "/adapters") {
      list_adapters();
    } else if (name == "/reset") {
      reset();
    } else if (name == "/help") {
      fmt::print("{}", kHelp);
    } else {
      fail(Code::invalid_argument, "there is no command {}; /help lists them", name);
    }
  }

  void use_adapter(const std::string& name) {
    if (name.empty()) fail(Code::invalid_argument, "/adapter needs a name; /adapters lists them");
    if (name == "none") {
      adapter_.clear();
      return;
    }
    for (const auto& entry : talk_.engine().adapters().entries) {
      if (entry.name != name) continue;
      adapter_ = name;
      return;
    }
    fail(Code::not_found, "there is no adapter {}; /adapters lists them", name);
  }

  void list_adapters() {
    const AdapterSnapshot snapshot = talk_.engine().adapters();
    if (snapshot.entries.empty()) fmt::print("none; start with --adapter NAME=FOLDER\n");
    for (const auto& entry : snapshot.entries) {
      fmt::print("{} {}  {}{}\n", entry.name == adapter_ ? '*' : ' ', entry.name,
                 to_string(entry.state), entry.error.empty() ? "" : ": " + entry.error);
    }
  }

  const Flags& flags_;
  Talk& talk_;
  std::string adapter_;
  bool terminal_;
  json::array messages_;
};

int run(const Flags& flags) {
  Log log({.level = LogLevel::warn, .colour = may_colour()});
  const ModelPlace place = find_model(flags.model.model, flags.model.download);
  EngineOptions options = engine_options(flags.model, place);
  std::string adapter;
  for (auto at = flags.adapters.rbegin(); at != flags.adapters.rend(); ++at) {
    adapter = add_adapter(options, *at);  // the first of them is used first
  }
  ProgressLine line(progress_place(!flags.model.download.no_progress));
  TalkSession session(place, std::move(options), log, line);
  Conversation(flags, session.talk(), std::move(adapter)).run();
  return 0;
}

}  // namespace

Command add_chat(CLI::App& lorry) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& app = *lorry.add_subcommand("chat", "Talk to a model here, switching adapters");
  const char* group = "Conversation";
  app.add_option(
         "--adapter", flags->adapters,
         "Adapter: a folder, or one of the demo's by its name; may be given again (default: "
         "none)")
      ->allow_extra_args(false)
      ->group(group)
      ->type_name("NAME|NAME=FOLDER");
  app.add_option("--system", flags->system, "System message of the conversation (default: none)")
      ->group(group)
      ->type_name("TEXT");
  add_model_flags(app, flags->model, false);
  add_sampling_flags(app, flags->sampling);
  add_progress_flag(app, flags->model.download.no_progress, "Logging");
  app.footer(std::string("Examples\n"
                         "  lorry chat\n"
                         "  lorry chat /models/mixtral --adapter sql=/adapters/sql\n"
                         "Within it\n") +
             kHelp);
  return {&app, [flags] { return run(*flags); }};
}

}  // namespace lorry
