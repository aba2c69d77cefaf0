#include "base/error.h"

#include <cstdio>
#include <cstdlib>

#include "base/log.h"

namespace lorry {

std::string quote(std::string_view text, size_t max_bytes) {
  const bool shortened = text.size() > max_bytes;
  if (shortened) {
    text = text.substr(0, max_bytes);
    // Cut in front of a UTF-8 sequence, not inside one.
    while (!text.empty() && (static_cast<unsigned char>(text.back()) & 0xc0U) == 0x80U) {
      text.remove_suffix(1);
    }
    if (!text.empty() && static_cast<unsigned char>(text.back()) >= 0xc0U) text.remove_suffix(1);
  }
  return fmt::format("\"{}{}\"", escape_control(text), shortened ? "..." : "");
}

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  std::fprintf(stderr, "%s:%d: check failed: %s %s\n", file, line, condition, message.c_str());
  std::abort();
}

}  // namespace lorry
