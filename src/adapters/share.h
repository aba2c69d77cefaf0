// The part of an adapter that one rank of a model packs: the same pieces, narrowed to the inputs
// and outputs that the rank has. A pair on a linear whose inputs are split keeps all of B and its
// part of A; on one whose outputs are split all of A and its part of B. Pure function, any thread.
#pragma once
#include "adapters/lora_map.h"
#include "adapters/target.h"

namespace lorry {

// Patches of sites that the rank has nothing of are left out; tokens become rows of its part of the
// vocabulary. `magnitude` stays as it is.
LoraMap share_of(const LoraMap& all, const AdapterTarget& target, int rank);

}  // namespace lorry
