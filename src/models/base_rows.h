// Rows of a base matrix by the site that adapters know it by: what DoRA's norms are made of, and
// what whole weights in adapters are compared with. Pure functions, any thread.
#pragma once
#include <functional>
#include <vector>

#include "models/architecture.h"
#include "models/causal_lm.h"

namespace lorry {

// y [n, in] f32 <- rows [first, first + n) of the matrix [out, in] of a linear, as the backend
// computes with it. Of the embedding [V, D] likewise; a norm is one row [D].
// Requires: a site of the model that `weights` are of.
void base_rows(Tensor y, const ModelWeights& weights, const SiteIndex& index, const Ops& ops,
               const Site& site, int64_t first);

// The tensor of a checkpoint that holds the same matrix.
Slice slice_of(const Architecture& architecture, const Spec& spec, const Site& site,
               const Architecture::Has& has);

}  // namespace lorry
