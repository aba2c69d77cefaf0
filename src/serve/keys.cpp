#include "serve/keys.h"

#include <algorithm>

#include "base/error.h"

namespace lorry {

namespace {

Digest sha256(std::string_view text) {
  Sha256 hash;
  hash.update(text);
  return hash.finish();
}

bool sendable(std::string_view text) {
  return !text.empty() &&
         std::all_of(text.begin(), text.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

}  // namespace

ApiKey parse_api_key(std::string_view text, size_t number) {
  ApiKey out;
  out.name = fmt::format("key-{}", number);
  std::string_view key = text;
  if (const size_t colon = text.find(':'); colon != std::string_view::npos) {
    out.name = std::string(text.substr(0, colon));
    key = text.substr(colon + 1);
    constexpr std::string_view kAdmin = ":admin";
    out.admin = key.ends_with(kAdmin);
    if (out.admin) key.remove_suffix(kAdmin.size());
    if (!sendable(out.name) || key.find(':') != std::string_view::npos) {
      fail(Code::invalid_argument,
           "API key {} is not KEY, NAME:KEY or NAME:KEY:admin (a key holds no colon)", number);
    }
  }
  if (!sendable(key)) {
    fail(Code::invalid_argument,
         "API key {} is empty, or holds a blank, a control byte or a letter beyond ASCII", number);
  }
  out.digest = sha256(key);
  out.secret = hmac_sha256(key, "lorry prefix cache");
  return out;
}

std::vector<ApiKey> parse_api_keys(std::string_view lines, const std::string& origin,
                                   size_t first) {
  std::vector<ApiKey> keys;
  for (size_t number = 1; !lines.empty(); ++number) {
    const size_t end = std::min(lines.find('\n'), lines.size());
    std::string_view line = lines.substr(0, end);
    lines.remove_prefix(std::min(end + 1, lines.size()));
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.remove_suffix(1);
    if (line.empty() || line.front() == '#') continue;
    try {
      keys.push_back(parse_api_key(line, first + keys.size()));
    } catch (const Error& e) {
      fail(Code::invalid_argument, "{}:{}: {}", origin, number, e.what());
    }
  }
  if (keys.empty()) fail(Code::invalid_argument, "{} holds no key", origin);
  return keys;
}

std::string Tenant::salt(std::string_view cache_salt) const {
  // Nobody's secret: the field alone.
  return key_.secret.empty() ? std::string(cache_salt) : hmac_sha256(key_.secret, cache_salt);
}

bool Tenant::take(int64_t n) {
  const int64_t before = taken_.fetch_add(n);
  if (most_ == 0 || before + n <= most_) return true;
  taken_.fetch_sub(n);
  return false;
}

KeyRing::KeyRing(const std::vector<ApiKey>& keys, int64_t most_requests) {
  for (const ApiKey& key : keys) {
    for (const auto& other : tenants_) {
      if (other->name() == key.name) {
        fail(Code::invalid_argument, "two API keys are named {}", quote(key.name));
      }
      if (other->digest() == key.digest) {
        fail(Code::invalid_argument, "the API keys {} and {} are the same", quote(other->name()),
             quote(key.name));
      }
    }
    tenants_.push_back(std::make_shared<Tenant>(key, tenants_.size() + 1, most_requests));
  }
}

std::shared_ptr<Tenant> KeyRing::find(std::string_view key) const {
  const Digest digest = sha256(key);
  std::shared_ptr<Tenant> found;
  for (const auto& tenant : tenants_) {
    if (equal_in_constant_time(tenant->digest(), digest)) found = tenant;
  }
  return found;
}

}  // namespace lorry
