// CausalLM: a decoder of MoE layers with its weights packed for one backend, and the memory of one
// step. forward() is the only way through it, for prefill, chunks, decoding and drafts alike.
// Thread: one thread at a time calls forward().
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"
#include "lorry/forward.h"
#include "models/best_of_part.h"
#include "models/layer.h"
#include "models/medusa.h"
#include "models/rope.h"
#include "models/share.h"
#include "models/step_inputs.h"
#include "ops/ops.h"
#include "parallel/comm.h"

namespace lorry {

// Weights as the loader leaves them.
struct ModelWeights {
  Tensor embed;  // [V, D] act
  LoraSite embed_site;
  std::vector<DecoderLayer> layers;
  SiteNorm final_norm;
  Linear head;
  std::vector<Buffer> storage;  // owns everything above
  size_t bytes = 0;
  int32_t widened = 0;    // matrices that the checkpoint has quantised and that are plain here
  bool from_f16 = false;  // the checkpoint's embedding is f16
};

class CausalLM {
 public:
  // Requires: ops, comm outlive the model.
  CausalLM(const ModelShare& share, ModelWeights weights, Ops& ops, Comm& comm,
           const ForwardLimits& limits);

  // kv: one entry per layer. adapters: what ForwardInput::adapters index. With several ranks, each
  // calls it with the same input; logits are whole on rank 0, hidden states on all.
  ForwardOutput forward(const ForwardInput& in, std::span<const KvLayer> kv,
                        std::span<const AdapterView> adapters);

  // A hash of the experts that the last pass chose, of use with several ranks only: equal on all.
  // On devices, which are alike, 0.
  uint64_t routes() const { return routes_; }
  const ForwardLimits& limits() const { return limits_; }
  const ModelWeights& weights() const { return weights_; }
  ModelWeights& weights() { return weights_; }  // between two passes
  static size_t scratch_bytes(const ModelShare& share, const Ops& ops, const ForwardLimits& limits);

 private:
  static size_t step_bytes(const ModelShare& share, const Ops& ops, const ForwardLimits& limits);
  Arena memory_of_sums(size_t bytes);
  void carve();
  StepBuffers cut(int64_t n_rows);
  LoraPlan plan_rows(const ForwardInput& in, std::span<const AdapterView> adapters);
  ForwardOutput outputs(const ForwardInput& in, Step& step, Tensor logit_rows);
  std::span<const int32_t> own_ids(std::span<const int32_t> ids);
  Tensor gathered(Tensor part, Tensor whole);
  Tensor best_of_ranks(Tensor best, Tensor logits);
  Tensor on_host(const Tensor& t, PinnedBuffer& memory) const;

  const ModelShare share_;
  const Spec& spec_;  // the rank's own sizes
  ModelWeights weights_;
  Ops& ops_;
  Comm& comm_;
  ForwardLimits limits_;
  RopeTable rope_;
  StepInputs inputs_;
  Arena sums_;  // what is summed over ranks
  Arena arena_;
  Arena gathered_;  // what rank 0 puts together
  PinnedBuffer host_logits_, host_best_, host_hidden_, host_speculative_;  // a device's results
  StepBuffers full_;
  Tensor out_x_, out_h_, logits_, best_, attention_scratch_;
  Tensor whole_logits_, whole_speculative_;          // rank 0 of several
  std::vector<int64_t> vocab_widths_, best_widths_;  // f32 that each rank gives of a row
  std::vector<BestOfPart> own_best_, all_best_;
  uint64_t routes_ = 0;
  MedusaRunner medusa_;
  // Plans of the current step; reserved for the limits.
  std::vector<int32_t> row_adapter_, out_adapter_, own_ids_;
  std::vector<LoraSegment> segments_, out_segments_;
};

}  // namespace lorry
