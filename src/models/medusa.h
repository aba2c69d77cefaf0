// Runs the Medusa heads of a step's adapters over its rows with logits. Heads without an output
// matrix go through the model's output layer as the rest of their row does, the adapter's own LoRA
// of it included (as LoRAX passes its adapted output layer to the heads).
#pragma once
#include <algorithm>
#include <span>
#include <vector>

#include "lorry/forward.h"
#include "models/layer.h"
#include "models/spec.h"

namespace lorry {

// Memory of one step: for each row with logits, its heads one after the other.
struct MedusaBuffers {
  Tensor x;       // [R heads, D] act
  Tensor y;       // [R, D] f32
  Tensor logits;  // [R heads, V] f32

  // From `take(dtype, rows, cols)`; nothing where limits admit no heads.
  template <class Take>
  static MedusaBuffers lay_out(const Spec& s, Dtype act, const ForwardLimits& limits, Take&& take) {
    MedusaBuffers b;
    if (limits.max_medusa_heads == 0) return b;
    const int64_t rows = limits.max_logit_rows;
    b.x = take(act, rows * limits.max_medusa_heads, s.dim);
    b.y = take(Dtype::f32, rows, s.dim);
    b.logits = take(Dtype::f32, rows * limits.max_medusa_heads, s.vocab);
    return b;
  }
};

class MedusaRunner {
 public:
  MedusaRunner(const MedusaBuffers& buffers, const ForwardLimits& limits);

  // Logits [R, heads, V] f32 of the rows h [R, D] act (final norm done), of which `segments` use an
  // adapter; heads is the largest number of an adapter among them. 0 for heads that a row's adapter
  // does not have. An empty tensor when no adapter has any. Valid until the next call.
  Tensor run(Step& step, Tensor h, std::span<const LoraSegment> segments, const Linear& head);

 private:
  // The heads' rows of one segment up to their output layer.
  void run_blocks(Step& step, Tensor h, const LoraSegment& segment, const MedusaView& medusa);
  void run_outputs(Step& step, const LoraSegment& segment, const MedusaView& medusa);
  // Rows of x that are next to each other go through the model's output layer together.
  void run_model_output(Step& step, const Linear& head);

  MedusaBuffers buffers_;
  int32_t max_heads_;
  int32_t heads_ = 0;                // of the step
  std::vector<LoraSegment> shared_;  // rows of x for the model's output layer
};

}  // namespace lorry
