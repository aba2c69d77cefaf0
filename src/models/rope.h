// Rotary position embedding tables: cos and sin of every row of a batch, made once per step.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "lorry/tensor.h"
#include "models/spec.h"

namespace lorry {

// Inverse frequencies [head_dim / 2] for a sequence of `length` tokens (which only the dynamic and
// longrope kinds look at). Formulas: Hugging Face transformers, modeling_rope_utils.
std::vector<float> inverse_frequencies(const RopeSpec& rope, int64_t head_dim, int64_t length);

class RopeTable {
 public:
  RopeTable(const RopeSpec& rope, int64_t head_dim);
  // cos, sin [T, head_dim / 2] f32 <- positions [T]; lengths [T] as ForwardInput::rope_lens.
  void fill(Tensor cos, Tensor sin, std::span<const int32_t> positions,
            std::span<const int32_t> lengths);

 private:
  // cos, sin <- of a position.
  void compute(float* cos, float* sin, int32_t position, const std::vector<float>& inv) const;
  // The same, which is kept: [cos, sin].
  const float* kept(int32_t position);

  RopeSpec rope_;
  int64_t head_dim_;
  std::vector<float> frequencies_;  // of a sequence within the original length
  // Of the first positions what frequencies_ make of them, once they were asked for: of a long
  // prompt all these cosines take milliseconds.
  std::vector<float> kept_;
  std::vector<bool> known_;
};

}  // namespace lorry
