// ModelShare: a model as one rank has it: its own sizes, and its own part of every stored matrix.
// Each rank is a whole model of smaller sizes, whose partial sums Comm adds up. Plain data.
#pragma once
#include "models/architecture.h"
#include "models/spec.h"
#include "parallel/placement.h"

namespace lorry {

// What the placement of a model depends on.
ModelShape shape_of(const Spec& spec);

struct ModelShare {
  ModelShare(const Spec& spec);  // all of it  NOLINT(google-explicit-constructor)
  ModelShare(const Spec& spec, const Placement& placement);

  Spec whole;
  // heads, ffn and vocab are the rank's; so is what is computed from them. `experts`, like dim, is
  // the model's: the router is on every rank.
  Spec own;
  Placement placement;

  bool is_whole() const { return placement.ranks == 1; }
};

// The rank's part of what is stored.
LayerSlices own_slices(const LayerSlices& all, const ModelShare& share);
ModelSlices own_slices(const ModelSlices& all, const ModelShare& share);

// The part of a site that a rank has.
SiteShare share_of(const Site& site, const Spec& whole, const Placement& placement);

}  // namespace lorry
