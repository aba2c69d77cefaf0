// Rows of a base matrix by the site that adapters know it by: what DoRA's norms are made of, and
// what whole weights in adapters are compared with.
#pragma once
#include "models/architecture.h"
#include "models/causal_lm.h"
#include "models/source.h"

namespace lorry {

// y [n, in] f32 <- rows [first, first + n) of the matrix [out, in] of a linear, as the backend
// computes with it. Of the embedding [V, D] likewise; a norm is one row [D]. Any thread.
// Requires: a site of the model that `weights` are of.
void base_rows(Tensor y, const ModelWeights& weights, const SiteIndex& index, const Ops& ops,
               const Site& site, int64_t first);

// A model that is not loaded.
struct StoredModel {
  const Architecture& architecture;
  const Spec& spec;
  TensorSource& source;
  const Ops& ops;  // that would load it
};

// The same rows, read from the source, quantised where the spec says so. One thread at a time.
// Throws as TensorSource::tensor.
void stored_rows(Tensor y, const StoredModel& model, const Site& site, int64_t first);

}  // namespace lorry
