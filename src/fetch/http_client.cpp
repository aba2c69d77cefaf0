#include "fetch/http_client.h"

#include <charconv>
#include <exception>
#include <string_view>

#include <curl/curl.h>

#include "base/error.h"
#include "base/log.h"
#include "base/text.h"

namespace lorry {

namespace {

constexpr size_t kMaxHeaderBytes = size_t{256} << 10;

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

bool may_pass_later(int status) { return status == 408 || status == 429 || status >= 500; }

bool may_pass_later(CURLcode code) {
  switch (code) {
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_HTTP2:
    case CURLE_PARTIAL_FILE:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_HTTP2_STREAM:
      return true;
    default:
      return false;
  }
}

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && std::string_view(" \t\r\n").find(s.back()) != s.npos) s.remove_suffix(1);
  return s;
}

struct FreeList {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
using HeaderList = std::unique_ptr<curl_slist, FreeList>;

void append(HeaderList& list, const FetchRequest::Headers& headers) {
  for (const auto& [name, value] : headers) {
    for (const char c : value) {
      // The value may be a token: the message does not show it.
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
        fail(Code::invalid_argument,
             "the value for the HTTP header {} (a token?) holds a control byte; remove it", name);
      }
    }
    curl_slist* longer = curl_slist_append(list.get(), (name + ": " + value).c_str());
    LORRY_CHECK(longer != nullptr);
    static_cast<void>(list.release());
    list.reset(longer);
  }
}

}  // namespace

struct HttpClient::Handle {
  CURL* easy = nullptr;
  ~Handle() { curl_easy_cleanup(easy); }
};

struct HttpClient::Hop {
  const FetchRequest& request;
  Url url;
  bool with_secrets = true;
};

namespace {

// One hop on its way: what libcurl's callbacks fill. Exceptions must not pass through libcurl: they
// are kept and the transfer is ended.
struct Transfer {
  const FetchRequest& request;
  const Deadline& deadline;
  FetchResponse response = {};
  size_t header_bytes = 0;
  bool head_seen = false;
  bool cut = false;  // the rest of an error's text is not wanted
  std::exception_ptr thrown = {};

  bool to_sink() const {
    return request.on_body && (response.status == 200 || response.status == 206);
  }

  void on_header(std::string_view line) {
    header_bytes += line.size();
    if (header_bytes > kMaxHeaderBytes) {
      fail(Code::bad_file, "{}: the answer's headers are longer than {} bytes",
           response.url.shown(), kMaxHeaderBytes);
    }
    if (line.starts_with("HTTP/")) {  // also after "100 Continue" and a proxy's answer
      response.headers.clear();
      const size_t space = line.find(' ');
      int status = 0;
      if (space != line.npos) {
        std::from_chars(line.data() + space + 1, line.data() + line.size(), status);
      }
      response.status = status;
      return;
    }
    const size_t colon = line.find(':');
    if (colon == line.npos) return;
    response.headers[lower_case(trim(line.substr(0, colon)))] = trim(line.substr(colon + 1));
  }

  void on_head() {
    if (head_seen) return;
    head_seen = true;
    if (to_sink()) {
      if (request.on_head) request.on_head(response);
    } else if (response.status == 200 && !request.head &&
               response.content_length() > static_cast<int64_t>(request.max_body_bytes)) {
      too_long();
    }
  }

  // False to end the transfer quietly.
  bool on_body(std::span<const std::byte> bytes) {
    on_head();
    if (to_sink()) {
      request.on_body(bytes);
      return true;
    }
    if (response.body.size() + bytes.size() > request.max_body_bytes) {
      if (response.status == 200) too_long();
      cut = true;
      return false;
    }
    response.body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return true;
  }

  [[noreturn]] void too_long() const {
    fail(Code::bad_file, "{}: the answer is longer than the {} bytes allowed for it",
         response.url.shown(), request.max_body_bytes);
  }
};

size_t header_callback(char* data, size_t size, size_t n, void* transfer) noexcept {
  auto& t = *static_cast<Transfer*>(transfer);
  try {
    t.on_header({data, size * n});
    return size * n;
  } catch (...) {
    t.thrown = std::current_exception();
    return 0;
  }
}

size_t body_callback(char* data, size_t size, size_t n, void* transfer) noexcept {
  auto& t = *static_cast<Transfer*>(transfer);
  try {
    return t.on_body(std::as_bytes(std::span(data, size * n))) ? size * n : 0;
  } catch (...) {
    t.thrown = std::current_exception();
    return 0;
  }
}

int progress_callback(void* transfer, curl_off_t, curl_off_t, curl_off_t, curl_off_t) noexcept {
  return static_cast<Transfer*>(transfer)->deadline.cancelled() ? 1 : 0;
}

template <class T>
void set(CURL* easy, CURLoption option, T value) {
  LORRY_CHECK(curl_easy_setopt(easy, option, value) == CURLE_OK, "libcurl option {}",
              static_cast<int>(option));
}

void set_limits(CURL* easy, const NetworkOptions& options, const Deadline& deadline) {
  set(easy, CURLOPT_NOSIGNAL, 1L);
  set(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  set(easy, CURLOPT_PATH_AS_IS, 1L);
  set(easy, CURLOPT_NOPROGRESS, 0L);
  set(easy, CURLOPT_USERAGENT, options.user_agent.c_str());
  if (!options.ca_file.empty()) set(easy, CURLOPT_CAINFO, options.ca_file.c_str());
  set(easy, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options.connect_timeout.count()));
  set(easy, CURLOPT_LOW_SPEED_LIMIT, static_cast<long>(options.low_speed_bytes));
  set(easy, CURLOPT_LOW_SPEED_TIME, static_cast<long>(options.low_speed_time.count()));
  // One more than is left: at its end the deadline itself speaks.
  set(easy, CURLOPT_TIMEOUT_MS, static_cast<long>(deadline.left().count()) + 1);
}

}  // namespace

std::string FetchResponse::header(const std::string& name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? std::string() : found->second;
}

int64_t FetchResponse::content_length() const {
  const std::string text = header("content-length");
  int64_t n = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  return error == std::errc() && end == text.data() + text.size() && n >= 0 ? n : -1;
}

std::string FetchResponse::describe() const {
  if (!failure.empty()) return fmt::format("{}: {}", url.shown(), failure);
  return fmt::format("{}: answered {}", url.shown(), status);
}

HttpClient::HttpClient(const NetworkOptions& options, const Deadline& deadline)
    : options_(options), deadline_(deadline), handle_(std::make_unique<Handle>()) {
  // Once a process; libcurl's own initialisation is not safe among threads everywhere.
  static const CURLcode initialised = curl_global_init(CURL_GLOBAL_DEFAULT);
  LORRY_CHECK(initialised == CURLE_OK);
  handle_->easy = curl_easy_init();
  LORRY_CHECK(handle_->easy != nullptr);
}

HttpClient::~HttpClient() = default;

FetchResponse HttpClient::send_once(const Hop& hop) {
  CURL* easy = handle_->easy;
  curl_easy_reset(easy);  // keeps the connections
  Transfer transfer{.request = hop.request, .deadline = deadline_};
  transfer.response.url = hop.url;
  HeaderList headers;
  append(headers, {{"Accept-Encoding", "identity"}});
  append(headers, hop.request.headers);
  if (hop.with_secrets) append(headers, hop.request.secret_headers);
  const std::string url = hop.url.text();
  char message[CURL_ERROR_SIZE] = "";
  set(easy, CURLOPT_URL, url.c_str());
  set(easy, CURLOPT_HTTPHEADER, headers.get());
  set(easy, CURLOPT_NOBODY, hop.request.head ? 1L : 0L);
  set(easy, CURLOPT_ERRORBUFFER, message);
  set(easy, CURLOPT_HEADERFUNCTION, header_callback);
  set(easy, CURLOPT_HEADERDATA, static_cast<void*>(&transfer));
  set(easy, CURLOPT_WRITEFUNCTION, body_callback);
  set(easy, CURLOPT_WRITEDATA, static_cast<void*>(&transfer));
  set(easy, CURLOPT_XFERINFOFUNCTION, progress_callback);
  set(easy, CURLOPT_XFERINFODATA, static_cast<void*>(&transfer));
  set_limits(easy, options_, deadline_);

  const CURLcode code = curl_easy_perform(easy);
  if (transfer.thrown) std::rethrow_exception(transfer.thrown);
  deadline_.check();
  if (code == CURLE_OK) transfer.on_head();  // where there was no body
  FetchResponse response = std::move(transfer.response);
  if (code != CURLE_OK && !transfer.cut) {
    response.failure = escape_control(message[0] != '\0' ? message : curl_easy_strerror(code));
    response.retryable = may_pass_later(code);
  } else {
    response.retryable = may_pass_later(response.status);
  }
  return response;
}

FetchResponse HttpClient::send(const FetchRequest& request) {
  deadline_.check();
  Hop hop{.request = request, .url = parse_url(request.url, "the address of a request")};
  for (int n_redirects = 0;; ++n_redirects) {
    FetchResponse response = send_once(hop);
    if (!response.failure.empty() || !is_redirect(response.status) || request.max_redirects == 0) {
      return response;
    }
    if (request.follow && !request.follow(response)) return response;
    const Url target = redirect_target(hop.url, response.header("location"));
    if (n_redirects == request.max_redirects) {
      fail(Code::unavailable, "{}: more than {} redirects", response.url.shown(),
           request.max_redirects);
    }
    if (!target.same_origin(hop.url)) hop.with_secrets = false;
    hop.url = target;
  }
}

FetchResponse HttpClient::send_patiently(const FetchRequest& request, int attempts) {
  Backoff backoff(options_, deadline_, attempts);
  for (;;) {
    FetchResponse response = send(request);
    if (!response.retryable || !backoff.wait(response)) return response;
  }
}

}  // namespace lorry
