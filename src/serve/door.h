// Door: what is decided about a request before its route is looked at: the host it was sent to, the
// page that it comes from, and the key that it brings. Any thread.
#pragma once
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "serve/errors.h"
#include "serve/http.h"
#include "serve/keys.h"
#include "serve/options.h"

namespace lorry {

class Door {
 public:
  // `options` must outlive it. Throws as KeyRing does.
  explicit Door(const ServerOptions& options);

  // Only requests addressed to this machine's loopback are let in.
  void require_loopback_host() { loopback_only_.store(true); }
  bool has_keys() const { return !keys_.empty(); }

  struct Visit {
    std::optional<ApiError> refusal;
    std::optional<HttpResponse> preflight;  // the whole answer to a browser that asks beforehand
    std::shared_ptr<Tenant> tenant;         // null only with a refusal or a preflight
    HttpHeaders headers;                    // of the answer, whatever it is
  };
  Visit visit(const HttpRequest& request) const;

 private:
  bool is_foreign(std::string_view host) const;
  bool is_open(const HttpRequest& request) const;
  std::shared_ptr<Tenant> tenant_of(const HttpRequest& request) const;

  const ServerOptions& options_;
  const KeyRing keys_;
  const std::shared_ptr<Tenant> everybody_;
  std::atomic<bool> loopback_only_{false};
};

// The token of an `Authorization: Bearer` header, the scheme in any case; empty: there is none.
std::string_view bearer_of(const HttpRequest& request);

}  // namespace lorry
