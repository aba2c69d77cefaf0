#include "fetch/post.h"

#include <curl/curl.h>

#include "base/error.h"

namespace lorry {

namespace {

size_t ignore(char*, size_t size, size_t count, void*) { return size * count; }

}  // namespace

struct JsonPoster::Handle {
  CURL* easy = nullptr;
  curl_slist* headers = nullptr;
  ~Handle() {
    curl_slist_free_all(headers);
    curl_easy_cleanup(easy);
  }
};

JsonPoster::JsonPoster(std::string url) : handle_(std::make_unique<Handle>()) {
  if (!url.starts_with("http://") && !url.starts_with("https://")) {
    fail(Code::invalid_argument, "{} is no http or https URL", quote(url));
  }
  handle_->easy = curl_easy_init();
  handle_->headers = curl_slist_append(nullptr, "Content-Type: application/json");
  LORRY_CHECK(handle_->easy != nullptr && handle_->headers != nullptr);
  CURL* easy = handle_->easy;
  curl_easy_setopt(easy, CURLOPT_URL, url.c_str());
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, handle_->headers);
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, 2L);
  curl_easy_setopt(easy, CURLOPT_TIMEOUT, 5L);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, ignore);
}

JsonPoster::~JsonPoster() = default;

bool JsonPoster::post(const std::string& body) {
  CURL* easy = handle_->easy;
  curl_easy_setopt(easy, CURLOPT_POSTFIELDS, body.c_str());
  curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  if (curl_easy_perform(easy) != CURLE_OK) return false;
  long status = 0;
  curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
  return status >= 200 && status < 300;
}

}  // namespace lorry
