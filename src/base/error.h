// Error (public) and checks for programmer's errors. A LORRY_CHECK that fails prints the
// condition and the message and aborts; user input can never reach one.
#pragma once
#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "lorry/error.h"

namespace lorry {

// Throws Error with a formatted message.
template <class... Args>
[[noreturn]] void fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

// `text` in quotes for a message: control bytes as \xNN, shortened to max_bytes, so that a name out
// of a hostile file can neither forge a line nor fill the log.
std::string quote(std::string_view text, size_t max_bytes = 160);

[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& message);

}  // namespace lorry

#define LORRY_CHECK(condition, ...)                                                         \
  do {                                                                                      \
    if (!(condition)) [[unlikely]]                                                          \
      ::lorry::check_failed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)

// As LORRY_CHECK in builds that ask for it (LORRY_DCHECKS, cmake/lorry.cmake): for hot paths.
#define LORRY_DCHECK(condition, ...)                                                     \
  do {                                                                                   \
    if constexpr (LORRY_DCHECKS != 0) LORRY_CHECK(condition __VA_OPT__(, ) __VA_ARGS__); \
  } while (false)
