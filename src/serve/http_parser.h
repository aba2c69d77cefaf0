// RequestParser: one HTTP/1 request from bytes (Boost.Beast's parser), with what Beast admits and
// Lorry does not refused.
#pragma once
#include <cstddef>
#include <memory>
#include <string_view>

#include "serve/http.h"
#include "serve/http_head.h"

namespace lorry {

class RequestParser {
 public:
  explicit RequestParser(const HttpOptions& options);
  ~RequestParser();

  // `bytes` begin with a whole head, which check_head() has passed. *used: bytes of it.
  HeadProblem take_head(std::string_view bytes, size_t* used);
  // The next bytes of the body. *used: how many were taken; the rest is to be given again, with
  // more behind it, unless done().
  HeadProblem take_body(std::string_view bytes, size_t* used);
  bool done() const;

  // After the head.
  bool expects_continue() const;
  bool keep_alive() const;
  bool http11() const;
  bool is_head() const;
  // Method, path, headers and body.
  void move_to(HttpRequest& request);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorry
