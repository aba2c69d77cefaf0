// How `generate` and `chat` choose tokens.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/request.h"

namespace CLI {
class App;
}

namespace lorry {

struct SamplingFlags {
  int32_t max_new_tokens = 0;  // 0: up to 256, as far as the model admits
  std::optional<float> temperature;
  std::optional<int32_t> top_k;
  std::optional<float> top_p, min_p, typical_p;
  float repetition_penalty = 1, frequency_penalty = 0, presence_penalty = 0;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool ignore_eos = false;
};

void add_sampling_flags(CLI::App& app, SamplingFlags& flags);

// Everything of a request but its adapter and its sink. `longest`: tokens of prompt and answer that
// the engine admits. Any of temperature, top_k, top_p, min_p, typical_p turns sampling on.
Request make_request(const SamplingFlags& flags, std::vector<int32_t> prompt, int64_t longest);

}  // namespace lorry
