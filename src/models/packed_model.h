// Writes a model as a packed file (weights/packed_file.h), one linear in memory at a time.
#pragma once
#include <string>

#include "models/loader.h"

namespace lorry {

// A file at `path`, which must not exist, of the model that `files` are of, its linears as
// spec.formats says; returns its bytes. Requires: a source that is neither quantised nor packed.
// Throws Error: of the model as load_weights; invalid_argument when it cannot be written.
int64_t write_packed(const std::string& path, const Architecture& architecture, const Spec& spec,
                     const ModelFiles& files, Ops& ops, const ProgressSink& progress = {});

}  // namespace lorry
