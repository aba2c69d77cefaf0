// Folding: an adapter becomes part of the base weights, once, at start. Whoever then asks for no
// adapter gets its answers, at no cost per token; other adapters add to the folded weights.
#pragma once
#include "models/causal_lm.h"
#include "ops/lora.h"
#include "ops/ops.h"

namespace lorry {

// Every weight of a site that the adapter changes becomes what the adapter makes of it, rounded to
// the type of the weights. Takes f32 memory for one matrix at a time.
// Requires: no forward pass is running; the adapter was made for this model.
void fold_adapter(ModelWeights& weights, const AdapterView& adapter, Ops& ops);

}  // namespace lorry
