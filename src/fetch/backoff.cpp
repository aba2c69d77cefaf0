#include <algorithm>
#include <charconv>
#include <chrono>
#include <ctime>
#include <optional>
#include <random>

#include <curl/curl.h>

#include "fetch/http_client.h"

namespace lorry {

namespace {

using std::chrono::milliseconds;

// Seconds or a date (RFC 9110, 10.2.3); nothing where it is neither.
std::optional<milliseconds> retry_after(const std::string& text) {
  int64_t seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  if (error != std::errc() || end != text.data() + text.size()) {
    const time_t date = text.empty() ? -1 : curl_getdate(text.c_str(), nullptr);
    if (date < 0) return std::nullopt;
    seconds = static_cast<int64_t>(date) - static_cast<int64_t>(std::time(nullptr));
  }
  return std::chrono::seconds(std::clamp<int64_t>(seconds, 0, 86'400));
}

}  // namespace

Backoff::Backoff(const NetworkOptions& options, const Deadline& deadline, int attempts)
    : options_(options), deadline_(deadline), attempts_(attempts) {}

bool Backoff::wait(const FetchResponse& failed) {
  if (++tried_ >= attempts_) return false;
  double delay_ms = static_cast<double>(options_.first_delay.count());
  for (int i = 1; i < tried_; ++i) delay_ms *= 2;
  delay_ms = std::min(delay_ms, static_cast<double>(options_.max_delay.count()));
  // By chance, so that those who failed together do not come back together.
  std::random_device device;
  delay_ms *= std::uniform_real_distribution<double>(0.5, 1.5)(device);
  auto delay = milliseconds(static_cast<int64_t>(delay_ms));
  if (const auto asked = retry_after(failed.header("retry-after"))) {
    delay = std::max(delay, std::min(*asked, options_.max_retry_after));
  }
  return deadline_.sleep(delay);
}

}  // namespace lorry
