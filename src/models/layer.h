// One decoder layer of a mixture-of-experts transformer, and the one place where adapters enter:
// apply(), for a linear and for a norm.
#pragma once
#include <span>
#include <vector>

#include "models/spec.h"
#include "ops/ops.h"
#include "parallel/comm.h"

namespace lorry {

// A base matrix (or one per expert) and the sites where adapters may change it.
struct Linear {
  Weight w;
  std::vector<LoraSite> sites;
};

struct SiteNorm {
  Norm norm;
  int32_t site = 0;  // its index
};

// Rows as a linear sees them: which group each belongs to, which adapter.
struct Rows {
  RowGroups groups;
  std::span<const LoraSegment> segments;
};

// Memory of one step, carved at start for the limits and cut to the step's rows.
struct StepBuffers {
  Tensor x;         // [T, D] f32, the residual stream
  Tensor h;         // [T, D] act
  Tensor qkv;       // [T, q + 2 kv] f32
  Tensor o;         // [T, q] act
  Tensor y, z;      // [T, D] f32, what attention and experts add to x; alone both are one
  Tensor scores;    // [T, E] f32
  Tensor hs;        // [T k, D] act, h sorted by expert
  Tensor gate_up;   // [T k, gate_up_dim] f32
  Tensor act;       // [T k, F] act
  Tensor down;      // [T k, D] f32
  Tensor cos, sin;  // [T, d / 2] f32
  Tensor lora;      // f32, scratch of adapt
  Tensor linear;    // u8, scratch of linear
  Route route;
};

struct Step {
  Ops& ops;
  Comm& comm;
  const Spec& spec;  // the rank's own sizes
  StepBuffers& buf;
  const AttentionPlan& attention;
  const LoraPlan& lora;
  Tensor slots;  // i32 [T]
  Rows rows;     // all T rows, one group
  // With several ranks, a hash of the experts chosen so far: it must be the same on all of them.
  uint64_t routes = 0;
};

// y = x W^T, changed as each row's adapter says.
void apply(Step& step, Tensor y, Tensor x, const Linear& linear, const Rows& rows);
// The same, and best: where each row of y has its largest value (Ops::apply_best).
void apply_best(Step& step, Tensor best, Tensor y, Tensor x, const Linear& linear,
                const Rows& rows);
// y = norm(x), by the weight of each row's adapter where it has one.
void apply(Step& step, Tensor y, Tensor x, const SiteNorm& norm, const Rows& rows);

struct DecoderLayer {
  SiteNorm attn_norm, ffn_norm;
  Linear wqkv, wo, router, gate_up, down;

  // buf.x [T, D] in place, of which buf.h is attn_norm; kv is this layer's cache. Leaves the `next`
  // norm of x in buf.h, if there is one.
  void forward(Step& step, const KvLayer& kv, const SiteNorm* next) const;

 private:
  // buf.y <- the rank's part of the sum.
  void attend(Step& step, const KvLayer& kv) const;
  // Adds the experts' sum to buf.x, and leaves its norm in buf.h.
  void run_experts(Step& step, const SiteNorm* next) const;
  static void finish(Step& step, Tensor experts, const SiteNorm* next);
};

// All values of t become 0.
void clear(const Ops& ops, Tensor t);

}  // namespace lorry
