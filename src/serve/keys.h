// Keys of the server, and the tenants that they stand for. A key itself is kept nowhere: only its
// SHA-256, by which it is recognised, and a secret made of it, by which its cached prefixes are
// told from those of other keys.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/sha256.h"

namespace lorry {

struct ApiKey {
  std::string name;  // for logs and for people
  Digest digest{};   // SHA-256 of the key
  std::string secret;
  bool admin = false;  // may manage adapters
};

// "KEY", "NAME:KEY" or "NAME:KEY:admin"; without a NAME it is key-<number>. Throws
// Error(invalid_argument), which does not quote the key: it is empty, or holds blanks, control
// bytes or bytes beyond ASCII, which no header can carry.
ApiKey parse_api_key(std::string_view text, size_t number);
// One of them per line, the first is number `first`; empty lines and lines that begin with # are
// left out. `origin` names the file in messages.
std::vector<ApiKey> parse_api_keys(std::string_view lines, const std::string& origin, size_t first);

// Who asks: one key's owner, or everybody where the server has no keys. Any thread.
class Tenant {
 public:
  // `most`: requests at a time; 0: no limit.
  Tenant(ApiKey key, uint64_t id, int64_t most) : key_(std::move(key)), id_(id), most_(most) {}

  const std::string& name() const { return key_.name; }
  const Digest& digest() const { return key_.digest; }
  bool admin() const { return key_.admin; }
  uint64_t id() const { return id_; }
  // Of the prefix cache: what this tenant's requests with this `cache_salt` share.
  std::string salt(std::string_view cache_salt) const;

  // False when that would be more than it may have at a time.
  bool take(int64_t n);
  void give_back(int64_t n) { taken_.fetch_sub(n); }
  int64_t taken() const { return taken_.load(); }

 private:
  const ApiKey key_;
  const uint64_t id_;
  const int64_t most_;
  std::atomic<int64_t> taken_{0};
};

// What a request holds of its tenant's limit; gives it back at its end.
class Ticket {
 public:
  explicit Ticket(std::shared_ptr<Tenant> tenant) : tenant_(std::move(tenant)) {}
  ~Ticket() { tenant_->give_back(held_); }
  Ticket(const Ticket&) = delete;
  Ticket& operator=(const Ticket&) = delete;

  bool take(int64_t n) {
    if (!tenant_->take(n)) return false;
    held_ += n;
    return true;
  }

 private:
  const std::shared_ptr<Tenant> tenant_;
  int64_t held_ = 0;
};

class KeyRing {
 public:
  // Throws Error(invalid_argument) for two keys of one name, or one key twice.
  KeyRing(const std::vector<ApiKey>& keys, int64_t most_requests);

  bool empty() const { return tenants_.empty(); }
  // Null: no such key. Every key is compared, each in constant time.
  std::shared_ptr<Tenant> find(std::string_view key) const;

 private:
  std::vector<std::shared_ptr<Tenant>> tenants_;
};

}  // namespace lorry
