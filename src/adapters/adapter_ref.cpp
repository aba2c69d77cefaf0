#include "adapters/adapter_ref.h"

#include <bit>
#include <utility>

#include <fmt/format.h>

#include "base/sha256.h"

namespace lorry {

const char* to_string(AdapterSource s) {
  switch (s) {
    case AdapterSource::local:
      return "local";
    case AdapterSource::hub:
      return "hub";
    case AdapterSource::s3:
      return "s3";
  }
  return "?";
}

const char* to_string(MergeSpec::Strategy s) {
  switch (s) {
    case MergeSpec::Strategy::linear:
      return "linear";
    case MergeSpec::Strategy::cat:
      return "cat";
    case MergeSpec::Strategy::ties:
      return "ties";
    case MergeSpec::Strategy::dare_linear:
      return "dare_linear";
    case MergeSpec::Strategy::dare_ties:
      return "dare_ties";
    case MergeSpec::Strategy::magnitude_prune:
      return "magnitude_prune";
  }
  return "?";
}

AdapterRef::AdapterRef(std::string name) {
  if (!name.empty()) parts.emplace_back().name = std::move(name);
}

std::string AdapterRef::key() const {
  std::string key;
  if (is_merge) {
    key = fmt::format("{} {:x} {} {}\n", to_string(merge.strategy),
                      std::bit_cast<uint64_t>(merge.density), static_cast<int>(merge.majority_sign),
                      merge.seed);
  }
  for (const AdapterPart& p : parts) {
    key += fmt::format("{}:{}", to_string(p.source), p.name);
    if (!p.api_token.empty() && p.source != AdapterSource::local) {
      Sha256 hash;
      hash.update(p.api_token);
      key += "#" + to_hex(hash.finish());
    }
    if (is_merge) key += fmt::format(" {:x}\n", std::bit_cast<uint32_t>(p.weight));
  }
  return key;
}

std::string AdapterRef::label() const {
  if (!is_merge) return parts.empty() ? std::string() : parts.front().name;
  std::string text;
  for (const AdapterPart& p : parts) {
    text += fmt::format("{}{}*{}", text.empty() ? "" : ",", p.name, p.weight);
  }
  return fmt::format("{}({})", to_string(merge.strategy), text);
}

}  // namespace lorry
