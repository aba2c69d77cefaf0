// AdapterRef: what a request asks for: the base model (no parts), one adapter, or several made into
// one. Plain data; equal keys ask for the same thing.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lorry {

enum class AdapterSource : uint8_t {
  local,  // a registered name, or a folder below the adapter root
  hub,    // a repository in Hugging Face's format, "org/name" or "org/name@revision"
  s3,     // "bucket/prefix" of an S3-compatible store
};

const char* to_string(AdapterSource s);  // "local", "hub", "s3"

struct AdapterPart {
  std::string name;
  AdapterSource source = AdapterSource::local;
  std::string api_token;  // the caller's own, for private repositories; never shown or logged
  float weight = 1;       // only merges look at it
};

constexpr size_t kMaxMerged = 16;  // adapters in one merge

// How several adapters become one: PEFT's add_weighted_adapter (adapters/merge.h).
struct MergeSpec {
  enum class Strategy : uint8_t { linear, cat, ties, dare_linear, dare_ties, magnitude_prune };
  enum class MajoritySign : uint8_t { total, frequency };
  Strategy strategy = Strategy::cat;  // the weighted sum of the adapters' deltas
  double density = 1;                 // share of values kept: ties, dare_*, magnitude_prune
  MajoritySign majority_sign = MajoritySign::total;  // ties, dare_ties
  uint64_t seed = 0;                                 // dare_*: which values are kept
};

const char* to_string(MergeSpec::Strategy s);  // "dare_linear"

struct AdapterRef {
  AdapterRef() = default;
  AdapterRef(std::string name);                                    // NOLINT: a name is a reference
  AdapterRef(const char* name) : AdapterRef(std::string(name)) {}  // NOLINT

  std::vector<AdapterPart> parts;  // empty: the base model
  bool is_merge = false;           // parts are weighted and merged; else there is at most one
  MergeSpec merge;

  bool empty() const { return parts.empty(); }
  // Whose keys are equal get the same adapter. Holds digests of the tokens that open it, no token;
  // local adapters need none.
  std::string key() const;
  // For people, logs, headers and metrics: "name", or "cat(a*0.7,b*0.3)"; holds no token.
  std::string label() const;
};

}  // namespace lorry
