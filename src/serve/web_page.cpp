#include "serve/web_page.h"

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "base/embedded.h"
#include "base/error.h"
#include "base/text.h"
#include "serve/errors.h"

extern "C" {
extern const lorry::EmbeddedFile lorry_web_begin[];
extern const lorry::EmbeddedFile lorry_web_end[];
}

namespace lorry {

namespace {

constexpr std::string_view kPage = "index.html";

// Scripts, styles and connections of this server, and nothing else; no text becomes HTML.
constexpr const char* kPolicy =
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'";

std::string_view type_of(std::string_view name) {
  struct Type {
    std::string_view suffix, type;
  };
  constexpr std::array kTypes = {
      Type{".html", "text/html; charset=utf-8"}, Type{".css", "text/css; charset=utf-8"},
      Type{".js", "text/javascript; charset=utf-8"}, Type{".svg", "image/svg+xml"}};
  for (const Type& known : kTypes) {
    if (name.ends_with(known.suffix)) return known.type;
  }
  LORRY_CHECK(false, "no content type for {}", name);
}

bool is_read(const HttpRequest& request) {
  return request.method == "GET" || request.method == "HEAD";
}

// Programs that ask for / as they would for /health accept anything; browsers name text/html.
bool wants_html(const HttpRequest& request) {
  return lower_case(request.header("accept")).find("text/html") != std::string::npos;
}

const EmbeddedFile* file_for(const HttpRequest& request) {
  constexpr std::string_view kFolder = "/web/";
  const std::string_view path = request.path;
  std::string_view name;
  if (path == "/") {
    if (!is_read(request) || !wants_html(request)) return nullptr;
    name = kPage;
  } else if (path.starts_with(kFolder) && path != "/web/index.html") {
    name = path.substr(kFolder.size());
  }
  const std::span<const EmbeddedFile> files(lorry_web_begin, lorry_web_end);
  const auto found = std::find_if(files.begin(), files.end(),
                                  [&](const EmbeddedFile& file) { return file.name == name; });
  return found == files.end() ? nullptr : &*found;
}

}  // namespace

bool is_web_request(const HttpRequest& request) { return file_for(request) != nullptr; }

std::optional<HttpResponse> web_answer(const HttpRequest& request) {
  const EmbeddedFile* file = file_for(request);
  if (file == nullptr) return std::nullopt;
  if (!is_read(request)) {
    HttpResponse refusal = error_response(
        {Problem::method, fmt::format("{} is answered to GET only", quote(request.path, 80)), {}},
        dialect_of(request.path));
    refusal.headers.emplace_back("allow", "GET");
    return refusal;
  }
  const std::string etag = fmt::format("\"{}\"", std::string_view(file->digest).substr(0, 32));
  HttpResponse response;
  // Names stay the same from version to version: what is kept is asked for again, and found the
  // same.
  response.headers = {{"etag", etag},
                      {"cache-control", "no-cache"},
                      {"content-security-policy", kPolicy},
                      {"x-content-type-options", "nosniff"},
                      {"referrer-policy", "no-referrer"},
                      {"cross-origin-opener-policy", "same-origin"},
                      {"cross-origin-resource-policy", "same-origin"}};
  if (request.path == "/") response.headers.emplace_back("vary", "accept");
  const std::string_view known = request.header("if-none-match");
  if (known == "*" || known.find(etag) != std::string_view::npos) {
    response.status = 304;
    return response;
  }
  response.content_type = type_of(file->name);
  response.body = file->content();
  return response;
}

}  // namespace lorry
