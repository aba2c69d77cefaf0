// Log: lines to standard error, as text or JSON, control bytes escaped. Made once in the command
// line and passed down by reference; never holds a prompt, an output, a key or a token.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <fmt/format.h>

namespace lorry {

enum class LogLevel { debug, info, warn, error, off };

class Log {
 public:
  struct Options {
    LogLevel level = LogLevel::info;
    bool json = false;
    bool colour = true;  // of levels, on a terminal
  };
  explicit Log(Options options);
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  template <class... Args>
  void debug(fmt::format_string<Args...> format, Args&&... args) {
    if (level_ <= LogLevel::debug)
      write(LogLevel::debug, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void info(fmt::format_string<Args...> format, Args&&... args) {
    if (level_ <= LogLevel::info)
      write(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void warn(fmt::format_string<Args...> format, Args&&... args) {
    if (level_ <= LogLevel::warn)
      write(LogLevel::warn, fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) {
    if (level_ <= LogLevel::error)
      write(LogLevel::error, fmt::format(format, std::forward<Args>(args)...));
  }

  // An event with its figures at info: members of their own in JSON, else `message name=value ...`.
  using Fields =
      std::vector<std::pair<std::string_view, std::variant<std::string, double, int64_t>>>;
  void record(std::string_view message, const Fields& fields);

 private:
  void write(LogLevel level, const std::string& message);

  LogLevel level_;
  bool json_ = false;
  struct Sink;
  std::unique_ptr<Sink> sink_;
};

// Control bytes (and DEL) as \xNN, so that a client's string cannot forge a log line.
std::string escape_control(std::string_view text);

}  // namespace lorry
