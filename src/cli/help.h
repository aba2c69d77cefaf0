// What --help and --help-all print: flags in groups, wrapped; the first those that most people
// need, the second all, with their environment variables where the command reads them.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <CLI/CLI.hpp>

namespace lorry {

class HelpFormatter : public CLI::FormatterBase {
 public:
  std::string make_help(const CLI::App* app, std::string name,
                        CLI::AppFormatMode mode) const override;
};

// Of one command: its flags but those of help itself and those that are hidden, as defined.
std::vector<const CLI::Option*> shown_options(const CLI::App& app);

// What goes into the place of the value: "FOLDER", "int8|int4"; empty for a flag without one.
std::string value_of(const CLI::Option& option);

// Those of `candidates` that somebody who typed `word` may have meant: the nearest, or none.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);
// "; did you mean --port?", or nothing.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

// Flags that --help of a command with many shows.
std::span<const std::string_view> common_flags();

// All names of an application's flags, "--port", hidden ones left out.
std::vector<std::string> flag_names(const CLI::App& app);

}  // namespace lorry
