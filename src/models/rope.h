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
            std::span<const int32_t> lengths) const;

 private:
  RopeSpec rope_;
  int64_t head_dim_;
  std::vector<float> frequencies_;  // of a sequence within the original length
};

}  // namespace lorry
