// What the families' config.json have in common.
#pragma once
#include <string>

#include "models/spec.h"
#include "weights/config.h"

namespace lorry {

inline constexpr int64_t kMaxDim = int64_t{1} << 20;
inline constexpr int64_t kMaxVocab = int64_t{1} << 24;
inline constexpr int64_t kMaxPositions = int64_t{1} << 30;

inline int32_t integer32(const Config& config, std::string_view key, IntRange range,
                         std::optional<int64_t> absent) {
  return static_cast<int32_t>(config.integer(key, range, absent));
}

// rope_scaling (transformers 4) or rope_parameters (5). Throws Error(unsupported) for an unknown
// kind: skipping it would give wrong text.
RopeSpec rope_spec(const Config& config, double theta, int64_t head_dim, int64_t max_positions);

// Positions that may be used: dynamic scaling goes beyond max_position_embeddings, by its factor.
int64_t usable_positions(const RopeSpec& rope, int64_t max_positions);

// An activation by its Hugging Face name.
Activation activation_of(const Config& config, const std::string& key, const std::string& fallback);

// Heads must be whole multiples, head_dim even, no more experts chosen than there are.
void check_spec(const Config& config, const Spec& spec);

}  // namespace lorry
