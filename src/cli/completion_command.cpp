// `lorry completion`.
#include <cstdio>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cli/commands.h"
#include "cli/completion.h"

namespace lorry {

Command add_completion(CLI::App& lorry) {
  const auto shell = std::make_shared<std::string>();
  CLI::App& app =
      *lorry.add_subcommand("completion", "Print a script that completes command lines");
  app.add_option("shell", *shell, "The shell that the script is for")
      ->required()
      ->group("Shell")
      ->type_name("bash|zsh|fish");
  app.footer(
      "Examples\n"
      "  lorry completion bash > ~/.local/share/bash-completion/completions/lorry\n"
      "  lorry completion zsh > ~/.zfunc/_lorry        (a folder that $fpath names)\n"
      "  lorry completion fish > ~/.config/fish/completions/lorry.fish");
  return {&app, [shell, &lorry] {
            fmt::print("{}", completion_script(lorry, *shell));
            return 0;
          }};
}

}  // namespace lorry
