#include "serve/http_head.h"

#include <array>

#include <fmt/format.h>

namespace lorry {

namespace {

bool is_control(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return (byte < 0x20 && c != '\t') || byte == 0x7f;
}

bool has_control(std::string_view text) {
  for (const char c : text) {
    if (is_control(c)) return true;
  }
  return false;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

HeadProblem check_request_line(std::string_view line, const HttpOptions& options) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) {
    return {400, "the request line is not METHOD TARGET VERSION"};
  }
  if (last - first - 1 > options.max_target_bytes) return {414, "the URI is too long"};
  return {};
}

}  // namespace

HeadProblem check_head(std::string_view head, const HttpOptions& options) {
  size_t fields = 0;
  for (size_t at = 0; at < head.size();) {
    const size_t end = head.find('\n', at);
    if (end == std::string_view::npos || end == at || head[end - 1] != '\r') {
      return {400, "a header line does not end with CR LF"};
    }
    const std::string_view line = head.substr(at, end - 1 - at);
    if (has_control(line)) return {400, "a control byte in the header"};
    if (at == 0) {
      const HeadProblem problem = check_request_line(line, options);
      if (problem.status != 0) return problem;
    } else if (!line.empty()) {
      if (line[0] == ' ' || line[0] == '\t') return {400, "a folded header line"};
      if (++fields > options.max_fields) return {431, "too many header fields"};
    }
    at = end + 1;
  }
  return {};
}

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 422:
      return "Unprocessable Content";
    case 424:
      return "Failed Dependency";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 503:
      return "Service Unavailable";
    default:
      return "Unknown";
  }
}

std::string write_head(const HttpResponse& response, Framing framing, bool keep_alive) {
  std::string out =
      fmt::format("HTTP/1.1 {} {}\r\n", response.status, reason_phrase(response.status));
  if (!response.content_type.empty()) {
    out += fmt::format("content-type: {}\r\n", response.content_type);
  }
  for (const auto& [name, value] : response.headers) out += fmt::format("{}: {}\r\n", name, value);
  const bool has_length = response.status != 204 && response.status != 304;
  if (framing == Framing::length && has_length) {
    out += fmt::format("content-length: {}\r\n", response.body.size());
  } else if (framing == Framing::chunked) {
    out += "transfer-encoding: chunked\r\n";
  }
  if (!keep_alive) out += "connection: close\r\n";
  return out += "\r\n";
}

bool percent_decode(std::string_view text, std::string* out) {
  out->clear();
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      *out += text[i];
      continue;
    }
    if (text.size() - i < 3) return false;
    const int high = hex_digit(text[i + 1]);
    const int low = hex_digit(text[i + 2]);
    if (high < 0 || low < 0) return false;
    *out += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return true;
}

bool is_loopback_host(std::string_view host) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (host.starts_with(scheme)) host.remove_prefix(scheme.size());
  }
  if (host.starts_with("[")) {
    const size_t end = host.find(']');
    return end != std::string_view::npos && host.substr(1, end - 1) == "::1";
  }
  host = host.substr(0, host.find(':'));
  if (host == "localhost" || host.ends_with(".localhost")) return true;
  // 127.0.0.0/8 written as an address: a name such as 127.0.0.1.example.org is not.
  return host.starts_with("127.") &&
         host.find_first_not_of("0123456789.") == std::string_view::npos;
}

}  // namespace lorry
