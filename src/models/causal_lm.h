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
#include "models/layer.h"
#include "models/medusa.h"
#include "models/rope.h"
#include "models/spec.h"
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
  int32_t widened = 0;  // matrices that the checkpoint has quantised and that are plain here
};

class CausalLM {
 public:
  // Requires: ops, comm outlive the model.
  CausalLM(Spec spec, ModelWeights weights, Ops& ops, Comm& comm, const ForwardLimits& limits);

  // kv: one entry per layer. adapters: what ForwardInput::adapters index.
  ForwardOutput forward(const ForwardInput& in, std::span<const KvLayer> kv,
                        std::span<const AdapterView> adapters);

  const Spec& spec() const { return spec_; }
  const ForwardLimits& limits() const { return limits_; }
  const ModelWeights& weights() const { return weights_; }
  ModelWeights& weights() { return weights_; }  // between two passes
  size_t scratch_bytes() const { return arena_.size(); }
  static size_t scratch_bytes(const Spec& spec, const Ops& ops, const ForwardLimits& limits);

 private:
  void carve();
  StepBuffers cut(int64_t n_rows);
  LoraPlan plan_rows(const ForwardInput& in, std::span<const AdapterView> adapters);
  ForwardOutput outputs(const ForwardInput& in, Step& step);

  Spec spec_;
  ModelWeights weights_;
  Ops& ops_;
  Comm& comm_;
  ForwardLimits limits_;
  RopeTable rope_;
  Arena arena_;
  StepBuffers full_;
  Tensor out_x_, out_h_, logits_, attention_scratch_;
  MedusaRunner medusa_;
  // Plans of the current step; reserved for the limits.
  std::vector<int32_t> row_adapter_, out_adapter_;
  std::vector<LoraSegment> segments_, out_segments_;
};

}  // namespace lorry
