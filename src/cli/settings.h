// Flags that may also come from the environment or a YAML file. Command line > environment > file >
// default: apply_settings() fills, after parsing, every option that the command line left alone.
#pragma once
#include <string>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace lorry {

// Variables are named after the flags (--max-input-length: MAX_INPUT_LENGTH), keys of the file too
// (max-input-length or max_input_length); each name of a flag counts, lists are YAML lists or, in
// a variable, separated by spaces; name=value lists may be YAML maps. HOST and HOSTNAME count only
// when they hold an address: shells and containers set them to the machine's name.
// `file` may be empty. Throws Error naming the variable, or the file and its key: an unknown key, a
// value that the flag refuses.
void apply_settings(CLI::App& app, const std::string& file);

// Whether the command calls apply_settings(): it has a --config then.
bool has_settings(const CLI::App& app);
// "MAX_INPUT_LENGTH": of the flag's first name; empty where it is no setting.
std::string variable_of(const CLI::Option& option);

}  // namespace lorry
