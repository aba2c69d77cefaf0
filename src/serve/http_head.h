// The head of an HTTP/1 message as text: what is refused before the parser sees it (and never
// repaired: differing repairs are how requests are smuggled), and how ours is written.
#pragma once
#include <string>
#include <string_view>

#include "serve/http.h"

namespace lorry {

struct HeadProblem {
  int status = 0;  // 0: none
  std::string_view message;
};

// `head` runs from the request line to the empty line, both included. Checks line ends, control
// bytes, folded lines, the number of fields and the length of the target.
HeadProblem check_head(std::string_view head, const HttpOptions& options);

enum class Framing { length, chunked, until_close };

// Status line and fields, the empty line included.
std::string write_head(const HttpResponse& response, Framing framing, bool keep_alive);

// The standard words for a status, as in "404 Not Found".
std::string_view reason_phrase(int status);

// False when a % is not followed by two hexadecimal digits.
bool percent_decode(std::string_view text, std::string* out);

// Is the host of a Host header or an Origin this machine's loopback (any port)?
bool is_loopback_host(std::string_view host);

}  // namespace lorry
