// The subcommands of `lorry`. Each adds itself, with its flags and its help, to the command line;
// `run` is called after parsing and gives the exit status. Errors leave it as exceptions.
#pragma once
#include <functional>
#include <vector>

namespace CLI {
class App;
}

namespace lorry {

struct Command {
  CLI::App* app = nullptr;
  std::function<int()> run;
};

Command add_serve(CLI::App& lorry);
Command add_generate(CLI::App& lorry);
Command add_chat(CLI::App& lorry);
Command add_inspect(CLI::App& lorry);
Command add_logits(CLI::App& lorry);
Command add_bench(CLI::App& lorry);
Command add_quantize(CLI::App& lorry);
Command add_pull(CLI::App& lorry);
Command add_completion(CLI::App& lorry);
Command add_env(CLI::App& lorry);

// `lorry` itself, which becomes all of its commands.
std::vector<Command> add_commands(CLI::App& lorry);

// What main() does: parses, runs, and turns every exception into one line on standard error.
// 0: done; 1: failed; 2: the command line itself is wrong.
int run_command_line(int argc, char** argv);

}  // namespace lorry
