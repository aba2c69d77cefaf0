#include "engine/wire.h"

#include "base/error.h"

namespace lorry {

void WireWriter::number(int64_t x) {
  // Small numbers of either sign are short.
  auto bits = (static_cast<uint64_t>(x) << 1) ^ static_cast<uint64_t>(x >> 63);
  for (; bits >= 0x80; bits >>= 7) out_.push_back(static_cast<std::byte>(bits | 0x80));
  out_.push_back(static_cast<std::byte>(bits));
}

void WireWriter::text(const std::string& s) {
  number(static_cast<int64_t>(s.size()));
  const auto bytes = std::as_bytes(std::span(s));
  out_.insert(out_.end(), bytes.begin(), bytes.end());
}

void WireWriter::list(std::span<const int32_t> values) {
  number(static_cast<int64_t>(values.size()));
  int64_t before = 0;
  for (const int32_t v : values) {
    number(v - before);
    before = v;
  }
}

int64_t WireReader::number() {
  uint64_t bits = 0;
  for (int shift = 0;; shift += 7) {
    LORRY_CHECK(!in_.empty() && shift < 64, "a message between ranks ends early");
    const auto b = static_cast<uint64_t>(in_.front());
    in_ = in_.subspan(1);
    bits |= (b & 0x7f) << shift;
    if ((b & 0x80) == 0) break;
  }
  return static_cast<int64_t>(bits >> 1) ^ -static_cast<int64_t>(bits & 1);
}

std::string WireReader::text() {
  const auto n = static_cast<size_t>(number());
  LORRY_CHECK(n <= in_.size(), "a message between ranks ends early");
  std::string s(reinterpret_cast<const char*>(in_.data()), n);
  in_ = in_.subspan(n);
  return s;
}

void WireReader::list(std::vector<int32_t>& values) {
  const auto n = static_cast<size_t>(number());
  LORRY_CHECK(n <= in_.size(), "a list of {} in {} bytes", n, in_.size());
  values.resize(n);
  int64_t before = 0;
  for (int32_t& v : values) v = static_cast<int32_t>(before += number());
}

}  // namespace lorry
