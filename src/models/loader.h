// Reads a model's tensors, or a rank's part of each, in the order of its layers, into the backend's
// packed layout. Of plain tensors and packed files only that part is touched; but where a plain
// tensor is quantised with one scale for inputs that several ranks have, all of them.
#pragma once
#include "base/progress.h"
#include "base/thread_pool.h"
#include "models/architecture.h"
#include "models/causal_lm.h"
#include "models/share.h"
#include "models/source.h"

namespace lorry {

struct LoadOptions {
  ProgressSink progress = {};  // with the bytes of weights in memory, as weight_bytes counts them
  // Copies what a packed source holds, with these threads. Null: it is used where it is mapped, and
  // the source must outlive the weights.
  ThreadPool* copy_with = nullptr;
};

// What the source keeps quantised stays as it is, but for what the kernels have no form for, which
// is widened; from a plain source linears are quantised as spec.formats says. Throws Error naming
// the file, the tensor, what was expected and what was found.
ModelWeights load_weights(const Architecture& architecture, const ModelShare& share,
                          TensorSource& source, Ops& ops, const LoadOptions& options = {});

// A model as a packed file holds it: its matrices by their place ("embed", "final_norm", "lm_head";
// "layers.0." and attn_norm, ffn_norm, qkv, o, router, gate_up, down), plain ones as the source has
// them. A tied head that is plain is no piece of its own.
class PieceSink {
 public:
  virtual ~PieceSink() = default;
  virtual void plain(const std::string& name, const Tensor& tensor) = 0;
  // `w` lives for the call; without data where only the layout was asked for.
  virtual void packed(const std::string& name, const Weight& w) = 0;
};

// Hands over the pieces in the order that load_weights takes them, one in memory at a time.
// `data`: false: their shapes alone. Requires: a source that is neither quantised nor packed.
void each_piece(const Architecture& architecture, const Spec& spec, TensorSource& source, Ops& ops,
                PieceSink& sink, bool data, const ProgressSink& progress = {});

// Throws Error(bad_file) for a tensor of `model` that was not asked for and that nothing explains:
// it hints at an architecture that is only almost known. Returns how many others there are.
// With several ranks what others read explains itself.
size_t check_unused(TensorSource& source, const Architecture& architecture, const ModelShare& share,
                    const std::string& model);

// How load_weights will store them: as spec.formats says, or as most of a checkpoint's own are.
WeightFormats stored_formats(const Architecture& architecture, const Spec& spec,
                             TensorSource& source);

// Bytes that load_weights will take.
size_t weight_bytes(const Architecture& architecture, const ModelShare& share, TensorSource& source,
                    const Ops& ops);

}  // namespace lorry
