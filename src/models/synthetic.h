// Models that exist only as a shape: random weights made in memory, for benchmarks.
#pragma once
#include <string>
#include <string_view>

namespace lorry {

inline constexpr std::string_view kSyntheticPrefix = "synthetic:";

inline bool is_synthetic(std::string_view model) { return model.starts_with(kSyntheticPrefix); }

// The config.json of a synthetic model ("synthetic:mini-mixtral"; those of published shapes also
// with fewer layers, "synthetic:mixtral-8x7b:4"). Throws Error(not_found) listing the known names.
std::string synthetic_config(std::string_view model);

}  // namespace lorry
