#include "cli/environment.h"

#include <cstdlib>

#include <sys/ioctl.h>
#include <unistd.h>

namespace lorry {

std::optional<std::string> environment(const std::string& name) {
  const auto value = environment_as_it_is(name);
  return value && !value->empty() ? value : std::nullopt;
}

std::optional<std::string> environment_as_it_is(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value != nullptr ? std::optional<std::string>(value) : std::nullopt;
}

std::string cache_folder() {
  if (const auto cache = environment("XDG_CACHE_HOME"); cache && cache->starts_with('/')) {
    return *cache;
  }
  const auto home = environment("HOME");
  return home ? *home + "/.cache" : "";
}

std::string temporary_folder() { return environment("TMPDIR").value_or("/tmp"); }

bool stdin_is_terminal() { return isatty(STDIN_FILENO) == 1; }

bool stderr_is_terminal() {
  return isatty(STDERR_FILENO) == 1 && environment("TERM").value_or("dumb") != "dumb";
}

int terminal_columns() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

bool may_colour() { return !environment("NO_COLOR"); }

}  // namespace lorry
