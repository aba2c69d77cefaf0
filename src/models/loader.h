// Reads a model's tensors, or a rank's part of each, in the order of its layers, into the backend's
// packed layout. Of plain tensors only that part is touched.
#pragma once
#include <functional>

#include "models/architecture.h"
#include "models/causal_lm.h"
#include "models/share.h"
#include "models/source.h"

namespace lorry {

// Called after each layer with the number done and the number of all.
using LoadProgress = std::function<void(int32_t done, int32_t all)>;

// What the source keeps quantised stays as it is, but for what the kernels have no form for, which
// is widened; from a plain source linears are quantised as spec.formats says. Throws Error naming
// the file, the tensor, what was expected and what was found.
ModelWeights load_weights(const Architecture& architecture, const ModelShare& share,
                          TensorSource& source, Ops& ops, const LoadProgress& progress = {});

// How load_weights will store them: as spec.formats says, or as most of a checkpoint's own are.
WeightFormats stored_formats(const Architecture& architecture, const Spec& spec,
                             TensorSource& source);

// Bytes that load_weights will take.
size_t weight_bytes(const Architecture& architecture, const ModelShare& share, TensorSource& source,
                    const Ops& ops);

}  // namespace lorry
