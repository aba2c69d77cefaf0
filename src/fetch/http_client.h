// HttpClient: GET and HEAD over libcurl, one request at a time on the caller's thread. It follows
// redirects itself, so that what is secret is sent to the origin it was meant for and to no other,
// keeps connections open, and speaks http and https only, with certificates checked. Proxies are
// taken as libcurl takes them. No message holds a header or the query of a URL.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "fetch/deadline.h"
#include "fetch/options.h"
#include "fetch/url.h"

namespace lorry {

struct FetchResponse {
  int status = 0;          // 0: there was no answer
  std::string failure;     // why the transfer broke, a sentence; empty: the answer is complete
  bool retryable = false;  // the same request may succeed later: broken transfers, 408, 429, 5xx
  std::map<std::string, std::string> headers;  // names in lower case; the last of equal names
  std::string body;  // empty where the request has on_body and the status is 200 or 206
  Url url;           // of the last hop

  // Empty where there is none.
  std::string header(const std::string& name) const;
  // Content-Length; -1 where there is none or it is no number.
  int64_t content_length() const;
  bool ok() const { return failure.empty() && status == 200; }
  // "https://host/path: answered 503", or with the failure: for messages.
  std::string describe() const;
};

struct FetchRequest {
  using Headers = std::vector<std::pair<std::string, std::string>>;

  std::string url;
  bool head = false;  // HEAD instead of GET
  Headers headers = {};
  // Sent to the origin of `url` only, never again once a redirect has left it.
  Headers secret_headers = {};
  int max_redirects = 5;  // 0: a redirect is the answer
  // Asked before a redirect is followed: false makes the redirect the answer.
  std::function<bool(const FetchResponse& redirect)> follow = {};
  size_t max_body_bytes = size_t{1} << 20;  // of an answer that is kept in memory
  // A body of status 200 or 206 goes to on_body in pieces, after on_head saw status and headers.
  // What they throw ends the transfer and comes out of send().
  std::function<void(const FetchResponse&)> on_head = {};
  std::function<void(std::span<const std::byte>)> on_body = {};
};

class HttpClient {
 public:
  // `deadline` and `options` must outlive the client.
  HttpClient(const NetworkOptions& options, const Deadline& deadline);
  ~HttpClient();
  HttpClient(const HttpClient&) = delete;
  HttpClient& operator=(const HttpClient&) = delete;

  // One try. Broken transfers and error statuses are in the response. Throws
  // Error(invalid_argument) for a bad URL or header, Error(bad_file) for an answer that is longer
  // than allowed, Error(unavailable) for redirects that are refused and when the deadline says so.
  FetchResponse send(const FetchRequest& request);
  // send() until the answer is not retryable, `attempts` at most, or the time is over: the last
  // answer. For requests without on_body.
  FetchResponse send_patiently(const FetchRequest& request, int attempts);

  const NetworkOptions& options() const { return options_; }
  const Deadline& deadline() const { return deadline_; }

 private:
  struct Hop;
  FetchResponse send_once(const Hop& hop);

  const NetworkOptions& options_;
  const Deadline& deadline_;
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

// The pauses between the tries of one request.
class Backoff {
 public:
  Backoff(const NetworkOptions& options, const Deadline& deadline, int attempts);
  // Waits for the next try: longer each time, or as the failed answer's Retry-After says. False,
  // without waiting, where no try or no time is left. Throws when the deadline says so.
  bool wait(const FetchResponse& failed);
  // The last try got something done: counts anew.
  void reset() { tried_ = 0; }

 private:
  const NetworkOptions& options_;
  const Deadline& deadline_;
  int attempts_;
  int tried_ = 0;
};

}  // namespace lorry
