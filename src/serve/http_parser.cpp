#include "serve/http_parser.h"

#include <algorithm>
#include <string>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "base/text.h"

namespace lorry {

namespace http = boost::beast::http;
using boost::system::error_code;

struct RequestParser::Impl {
  http::request_parser<http::string_body> parser;
};

namespace {

HeadProblem problem_of(const error_code& ec) {
  if (ec == http::error::body_limit) return {413, "the body is too large"};
  if (ec == http::error::header_limit) return {431, "the header is too large"};
  if (ec == http::error::multiple_content_length || ec == http::error::bad_content_length) {
    return {400, "the body's length is ambiguous or not a number"};
  }
  if (ec == http::error::bad_transfer_encoding) return {400, "bad Transfer-Encoding"};
  if (ec == http::error::bad_version) return {400, "only HTTP/1.0 and HTTP/1.1 are spoken"};
  return {400, "malformed HTTP request"};
}

// What the parsed head asks for that is not served.
HeadProblem check_fields_of(const http::request<http::string_body>& message) {
  if (message.count(http::field::content_encoding) > 0) {
    return {415, "a Content-Encoding is not supported: send the body as it is"};
  }
  // Beast takes equal lengths for one.
  if (message.count(http::field::content_length) > 1 ||
      message[http::field::content_length].find(',') != std::string_view::npos) {
    return {400, "more than one Content-Length"};
  }
  const auto encoding = message[http::field::transfer_encoding];
  if (!encoding.empty() && !boost::beast::iequals(encoding, "chunked")) {
    return {400, "of the transfer encodings only chunked is supported"};
  }
  const auto expect = message[http::field::expect];
  if (!expect.empty() && !boost::beast::iequals(expect, "100-continue")) {
    return {417, "of the expectations only 100-continue is supported"};
  }
  if (message.version() == 11 && message.count(http::field::host) != 1) {
    return {400, "an HTTP/1.1 request has one Host header"};
  }
  return {};
}

}  // namespace

RequestParser::RequestParser(const HttpOptions& options) : impl_(std::make_unique<Impl>()) {
  impl_->parser.header_limit(static_cast<uint32_t>(options.max_head_bytes + 1));
  impl_->parser.body_limit(options.max_body_bytes);
}

RequestParser::~RequestParser() = default;

HeadProblem RequestParser::take_head(std::string_view bytes, size_t* used) {
  error_code ec;
  // Not eager: the head alone is consumed.
  *used = impl_->parser.put(boost::asio::buffer(bytes.data(), bytes.size()), ec);
  impl_->parser.eager(true);
  return ec ? problem_of(ec) : check_fields_of(impl_->parser.get());
}

HeadProblem RequestParser::take_body(std::string_view bytes, size_t* used) {
  *used = 0;
  // Beast asserts that of a last chunk it is not given four bytes after three.
  constexpr size_t kLastChunk = std::string_view("0\r\n\r\n").size();
  while (!impl_->parser.is_done() && *used < bytes.size()) {
    const std::string_view rest = bytes.substr(*used);
    if (impl_->parser.chunked() && rest.size() < kLastChunk && rest.front() == '0') break;
    error_code ec;
    const size_t n = impl_->parser.put(boost::asio::buffer(rest.data(), rest.size()), ec);
    *used += n;
    if (ec == http::error::need_more || (!ec && n == 0)) break;
    if (ec) return problem_of(ec);
  }
  return {};
}

bool RequestParser::done() const { return impl_->parser.is_done(); }

bool RequestParser::expects_continue() const {
  return !impl_->parser.get()[http::field::expect].empty();
}

bool RequestParser::keep_alive() const { return impl_->parser.keep_alive(); }
bool RequestParser::http11() const { return impl_->parser.get().version() == 11; }
bool RequestParser::is_head() const { return impl_->parser.get().method() == http::verb::head; }

void RequestParser::move_to(HttpRequest& request) {
  auto& message = impl_->parser.get();
  const std::string_view target(message.target().data(), message.target().size());
  request.method = std::string(message.method_string());
  request.path = std::string(target.substr(0, target.find('?')));
  for (const auto& field : message) {
    request.headers.emplace_back(
        lower_case({field.name_string().data(), field.name_string().size()}),
        std::string(field.value()));
  }
  request.body = std::move(message.body());
}

}  // namespace lorry
