#include "cli/compat_flags.h"

#include <array>
#include <string>

#include <CLI/CLI.hpp>

#include "base/error.h"

namespace lorry {

namespace {

enum class Takes { nothing, value };

struct CompatFlag {
  const char* name;
  Takes takes;
  // Values that ask for what is so anyway, separated by blanks; null: all of them.
  const char* harmless;
  const char* why;
};

constexpr auto kFlags = std::to_array<CompatFlag>({
    // LoRAX
    {"--source", Takes::value, nullptr, "the name of the MODEL says where it is"},
    {"--sharded", Takes::value, "false", "--num-shard says how many processes there are"},
    {"--waiting-served-ratio", Takes::value, nullptr, "waiting requests join at every step"},
    {"--max-waiting-tokens", Takes::value, nullptr, "waiting requests join at every step"},
    {"--eager-prefill", Takes::value, nullptr, "waiting requests join at every step"},
    {"--chunked-prefill", Takes::value, nullptr, "prompts always run in chunks"},
    {"--weights-cache-override", Takes::value, nullptr, "--huggingface-hub-cache is the cache"},
    {"--cuda-memory-fraction", Takes::value, nullptr, "--kv-tokens sets the cache"},
    {"--tokenizer-config-path", Takes::value, "", "put the file into the model's folder"},
    {"--download-only", Takes::nothing, "", "use lorry pull"},
    {"--env", Takes::nothing, nullptr, "`lorry env` tells about the machine"},
    {"--compile", Takes::nothing, nullptr, "kernels are compiled in"},
    {"--eager", Takes::nothing, nullptr, "kernels are compiled in"},
    {"--backend", Takes::value, nullptr, "--isa chooses kernels"},
    // vLLM
    {"--enable-lora", Takes::nothing, nullptr, "adapters are always on"},
});

const char* kGroup = "";  // not in the help

bool is_harmless(const CompatFlag& flag, const std::string& value) {
  return flag.harmless == nullptr || (!value.empty() && value == flag.harmless);
}

}  // namespace

void add_compat_flags(CLI::App& app) {
  for (const CompatFlag& flag : kFlags) {
    if (app.get_option_no_throw(flag.name) != nullptr) continue;
    if (flag.takes == Takes::nothing) {
      app.add_flag(flag.name)->group(kGroup);
    } else {
      app.add_option(flag.name)->group(kGroup)->expected(1);
    }
  }
}

void tell_compat_flags(const CLI::App& app, Log& log) {
  for (const CompatFlag& flag : kFlags) {
    const CLI::Option* option = app.get_option_no_throw(flag.name);
    if (option == nullptr || option->get_group() != kGroup || option->count() == 0) continue;
    const std::string value = option->results().back();
    if (flag.takes == Takes::nothing && value == "false") continue;
    if (!is_harmless(flag, value)) {
      fail(Code::unsupported, "{} {} is not supported: {}", flag.name, quote(value, 60), flag.why);
    }
    log.info("{} has no effect: {}", flag.name, flag.why);
  }
}

}  // namespace lorry
