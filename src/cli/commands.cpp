#include "cli/commands.h"

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/error.h"
#include "cli/help.h"

namespace lorry {

namespace {

constexpr const char* kFooter =
    "Begin with\n"
    "  lorry serve                        the demo model and its adapters on 127.0.0.1:3000\n"
    "  lorry chat                         talk to it here\n"
    "  lorry serve /models/mixtral --lora-modules sql=/adapters/sql\n"
    "`lorry COMMAND --help` lists a command's flags, `lorry COMMAND --help-all` all of them.\n"
    "`lorry completion bash` (or zsh, fish) prints completions for the shell.";

std::string one_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (char& c : text) {
    if (c == '\n') c = ' ';
  }
  return text;
}

// fmt::print would throw where standard error is closed or its disk is full.
void complain(const std::string& text) { std::fputs(text.c_str(), stderr); }

// What CLI11 says of a wrong command line, with what may have been meant.
std::string mistake(const CLI::App& app, const CLI::ParseError& e) {
  const auto parsed = app.get_subcommands();
  const CLI::App& command = parsed.empty() ? app : *parsed.front();
  for (const std::string& word : app.remaining(true)) {
    if (!word.starts_with("--")) continue;
    const std::string name = word.substr(0, word.find('='));
    return fmt::format("there is no flag {}{}", quote(name),
                       did_you_mean(name, flag_names(command)));
  }
  return one_line(e.what());
}

int run(const std::vector<Command>& commands) {
  for (const Command& command : commands) {
    if (!command.app->parsed()) continue;
    const int status = command.run();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      fail(Code::invalid_argument, "standard output: cannot write all of it");
    }
    return status;
  }
  return 2;  // not reached: one subcommand is required
}

}  // namespace

std::vector<Command> add_commands(CLI::App& app) {
  app.set_version_flag("--version", "lorry " LORRY_VERSION);
  app.set_help_all_flag("--help-all", "Print all flags and exit");
  app.require_subcommand(1);
  app.footer(kFooter);
  app.formatter(std::make_shared<HelpFormatter>());
  return {add_serve(app),      add_generate(app), add_chat(app),  add_pull(app),
          add_inspect(app),    add_logits(app),   add_bench(app), add_quantize(app),
          add_completion(app), add_env(app)};
}

int run_command_line(int argc, char** argv) {
  CLI::App app("Serves one Mixture-of-Experts language model together with many LoRA adapters.",
               "lorry");
  const std::vector<Command> commands = add_commands(app);
  try {
    app.parse(argc, argv);
    return run(commands);
  } catch (const CLI::Success& e) {  // --help, --version
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    const auto parsed = app.get_subcommands();
    if (parsed.empty() && argc > 1 && argv[1][0] != '-') {
      std::vector<std::string> names;
      for (const Command& command : commands) names.push_back(command.app->get_name());
      complain(fmt::format("lorry: there is no command {}{}\nSee: lorry --help\n", quote(argv[1]),
                           did_you_mean(argv[1], names)));
      return 2;
    }
    complain(fmt::format("lorry: {}\nSee: lorry {}--help\n", mistake(app, e),
                         parsed.empty() ? "" : parsed.front()->get_name() + " "));
    return 2;
  } catch (const std::exception& e) {
    complain(fmt::format("lorry: {}\n", one_line(e.what())));
    return 1;
  }
}

}  // namespace lorry
