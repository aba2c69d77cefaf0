#include "serve/door.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/text.h"
#include "serve/http_head.h"
#include "serve/web_page.h"

namespace lorry {

namespace {

bool contains(const std::vector<std::string>& list, std::string_view value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

HttpResponse preflight_answer() {
  HttpResponse response;
  response.status = 204;
  response.headers = {
      {"access-control-allow-methods", "GET, POST"},
      {"access-control-allow-headers", "authorization, content-type, x-api-key, x-request-id"},
      {"access-control-max-age", "600"}};
  return response;
}

}  // namespace

std::string_view bearer_of(const HttpRequest& request) {
  constexpr std::string_view kBearer = "bearer ";
  std::string_view given = request.header("authorization");
  if (given.size() <= kBearer.size() || lower_case(given.substr(0, kBearer.size())) != kBearer) {
    return {};
  }
  given.remove_prefix(kBearer.size());
  while (given.starts_with(' ')) given.remove_prefix(1);
  return given;
}

Door::Door(const ServerOptions& options)
    : options_(options),
      keys_(options.keys, options.max_requests_per_key),
      everybody_(std::make_shared<Tenant>(ApiKey{.name = "", .secret = "", .admin = true}, 0, 0)) {}

// A page of another site, in a browser on this machine, must not reach a server that is meant for
// this machine (DNS rebinding).
bool Door::is_foreign(std::string_view host) const {
  return !host.empty() && !is_loopback_host(host) && !contains(options_.allowed_hosts, host);
}

bool Door::is_open(const HttpRequest& request) const {
  if (request.method != "GET" && request.method != "HEAD") return false;
  // The page holds nothing of the server's; what it asks for needs the key that is typed into it.
  if (options_.web && is_web_request(request)) return true;
  const std::string& path = request.path;
  return path == "/health" || path == "/ping" || path == "/startup" ||
         (path == "/metrics" && options_.metrics_public);
}

std::shared_ptr<Tenant> Door::tenant_of(const HttpRequest& request) const {
  if (keys_.empty()) return everybody_;
  auto by_header = keys_.find(request.header("x-api-key"));
  auto by_bearer = keys_.find(bearer_of(request));
  if (by_header) return by_header;
  if (by_bearer) return by_bearer;
  return is_open(request) ? everybody_ : nullptr;
}

Door::Visit Door::visit(const HttpRequest& request) const {
  Visit visit;
  const std::string_view origin = request.header("origin");
  const auto& origins = options_.cors_origins;
  const bool any = contains(origins, "*");
  const bool shared = !origin.empty() && (any || contains(origins, origin));
  if (!origins.empty() && !any) visit.headers.emplace_back("vary", "origin");
  if (shared) {
    visit.headers.emplace_back("access-control-allow-origin", any ? "*" : std::string(origin));
    visit.headers.emplace_back("access-control-expose-headers", "*");
  }
  const auto forbidden = [](std::string_view header) {
    return ApiError{Problem::foreign_host,
                    fmt::format("this server answers only on this machine; the {} header names "
                                "another host",
                                header),
                    {}};
  };
  if (loopback_only_.load()) {
    if (is_foreign(request.header("host"))) visit.refusal = forbidden("host");
    if (!shared && is_foreign(origin)) visit.refusal = forbidden("origin");
    if (visit.refusal) return visit;
  }
  // Browsers send no key with it.
  if (shared && request.method == "OPTIONS" &&
      !request.header("access-control-request-method").empty()) {
    visit.preflight = preflight_answer();
    return visit;
  }
  visit.tenant = tenant_of(request);
  if (!visit.tenant) {
    visit.headers.emplace_back("www-authenticate", "Bearer");
    visit.refusal =
        ApiError{Problem::no_key,
                 "a valid API key is needed: send `Authorization: Bearer KEY` or `X-Api-Key: KEY`",
                 {}};
  }
  return visit;
}

}  // namespace lorry
