// The tensors that hold a whole layer's experts (PEFT's target_parameters, and whole parameters in
// modules_to_save), taken apart into the pieces of single sites. Pure functions, any thread.
#pragma once
#include <vector>

#include "adapters/lora_map.h"
#include "ops/lora.h"

namespace lorry {

// LoRA of a fused parameter, as the file stores it.
struct FusedPair {
  int32_t a = 0, b = 0;  // tensors
  int32_t rank = 0;      // per expert
  // 3-d parameters: PEFT before 0.19 exchanged in and out and transposed the delta.
  bool swapped = false;
};

// Shapes of A and B.
struct PairShapes {
  Shape a, b;
};
PairShapes pair_shapes(const FusedParameter& f, const FusedPair& pair, int32_t experts);

struct SitePieces {
  Site site;
  LoraPiece a, b;
};
std::vector<SitePieces> pair_pieces(const FusedParameter& f, const FusedPair& pair,
                                    int32_t experts);

// The whole parameter: its shape, and the matrix of each site in `tensor`.
Shape whole_shape(const FusedParameter& f, int32_t experts);
struct SiteMatrix {
  Site site;
  LoraPiece weight;
};
std::vector<SiteMatrix> whole_pieces(const FusedParameter& f, int32_t tensor, int32_t experts);

// Outputs of one site of the parameter.
int64_t site_outputs(const FusedParameter& f);

}  // namespace lorry
