#include "fetch/url.h"

#include <memory>

#include <curl/curl.h>

#include "base/error.h"
#include "base/text.h"

namespace lorry {

namespace {

// As it stands: S3 keys and signatures must not be tidied up.
constexpr unsigned kFlags = CURLU_PATH_AS_IS | CURLU_DISALLOW_USER;

struct Cleanup {
  void operator()(CURLU* u) const { curl_url_cleanup(u); }
};
using Handle = std::unique_ptr<CURLU, Cleanup>;

Handle new_handle() {
  Handle handle(curl_url());
  LORRY_CHECK(handle != nullptr);
  return handle;
}

std::string part(CURLU* handle, CURLUPart which) {
  char* text = nullptr;
  if (curl_url_get(handle, which, &text, CURLU_DEFAULT_PORT) != CURLUE_OK) return {};
  std::string result(text);
  curl_free(text);
  return result;
}

Url parts(CURLU* handle) {
  Url url;
  url.scheme = lower_case(part(handle, CURLUPART_SCHEME));
  url.host = lower_case(part(handle, CURLUPART_HOST));
  url.port = part(handle, CURLUPART_PORT);
  url.path = part(handle, CURLUPART_PATH);
  url.query = part(handle, CURLUPART_QUERY);
  return url;
}

bool is_web(const Url& url) {
  return (url.scheme == "http" || url.scheme == "https") && !url.host.empty();
}

}  // namespace

std::string Url::authority() const {
  const bool usual = port == (scheme == "https" ? "443" : "80");
  return usual ? host : host + ":" + port;
}

std::string Url::shown() const { return scheme + "://" + authority() + path; }

std::string Url::text() const { return query.empty() ? shown() : shown() + "?" + query; }

bool Url::same_origin(const Url& other) const {
  return scheme == other.scheme && host == other.host && port == other.port;
}

Url parse_url(const std::string& text, std::string_view what) {
  const Handle handle = new_handle();
  const CURLUcode code = curl_url_set(handle.get(), CURLUPART_URL, text.c_str(), kFlags);
  const Url url = code == CURLUE_OK ? parts(handle.get()) : Url{};
  if (text.find('\0') != std::string::npos || !is_web(url)) {
    fail(Code::invalid_argument, "{}: expected an http or https URL without a user name, found {}",
         what, code == CURLUE_OK ? "another kind of URL" : curl_url_strerror(code));
  }
  return url;
}

Url redirect_target(const Url& from, const std::string& location) {
  const Handle handle = new_handle();
  CURLUcode code = curl_url_set(handle.get(), CURLUPART_URL, from.text().c_str(), kFlags);
  if (code == CURLUE_OK) {
    code = curl_url_set(handle.get(), CURLUPART_URL, location.c_str(), kFlags | CURLU_URLENCODE);
  }
  const Url target = code == CURLUE_OK ? parts(handle.get()) : Url{};
  if (!is_web(target)) {
    fail(Code::unavailable, "{}: redirects to what is no http or https URL", from.shown());
  }
  if (from.scheme == "https" && target.scheme == "http") {
    fail(Code::unavailable, "{}: redirects from https to http ({}), which is refused", from.shown(),
         target.shown());
  }
  return target;
}

}  // namespace lorry
