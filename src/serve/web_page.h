// The web page: the files of src/serve/web, compiled into the binary. `/` is the page for those who
// accept text/html; its other files are at /web/NAME. No part of a path is looked up on a disk.
#pragma once
#include <optional>

#include "serve/http.h"

namespace lorry {

// Is it for the page (which is only read) or one of its files (in whatever method)?
bool is_web_request(const HttpRequest& request);

// The answer to such a request, none to others. Content, 304 where the client has it, or 405.
std::optional<HttpResponse> web_answer(const HttpRequest& request);

}  // namespace lorry
