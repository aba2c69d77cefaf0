// Scripts that complete lorry's command line in a shell, made from the flags themselves.
#pragma once
#include <string>
#include <string_view>

namespace CLI {
class App;
}

namespace lorry {

// `shell`: "bash", "zsh" or "fish". Throws Error(invalid_argument) for others.
std::string completion_script(const CLI::App& lorry, std::string_view shell);

}  // namespace lorry
