// What the process was started with. The only place that reads the environment.
#pragma once
#include <optional>
#include <string>

namespace lorry {

// Empty when the variable is not set, or set to nothing.
std::optional<std::string> environment(const std::string& name);
// Empty when the variable is not set.
std::optional<std::string> environment_as_it_is(const std::string& name);

// Folders of the user, as the XDG base directories and POSIX name them.
std::string cache_folder();      // empty: none
std::string temporary_folder();  // "/tmp" when nothing else is said

// Whether standard input is a person's terminal.
bool stdin_is_terminal();
// Whether standard error is a terminal on which a line can be written over.
bool stderr_is_terminal();
int terminal_columns();  // of standard error; 80 where nothing says
// Whether what is written to a terminal may be coloured (no-color.org).
bool may_colour();

}  // namespace lorry
