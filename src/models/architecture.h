// Architecture: what one model family adds to Lorry: its config.json keys, its tensor names and the
// module names that adapters use for it. No arithmetic. A new family is one file and one line in
// architectures.cpp.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lorry/tensor.h"
#include "models/spec.h"
#include "ops/lora.h"
#include "weights/config.h"

namespace lorry {

// Rows of a stored matrix that make up (a part of) one of ours.
struct Slice {
  std::string name;   // tensor in the checkpoint
  Shape shape;        // what it must have there
  int64_t first = 0;  // rows [first, first + count) of it seen as a matrix of its last dimension
  int64_t count = 0;
  bool transposed = false;  // the part is stored as the transpose of a Linear
  Range columns = {};       // of these rows; none: all
  Range inputs = {};        // of the Linear's inputs; none: all

  int64_t n_columns() const { return columns.count == 0 ? shape[-1] : columns.count; }
  int64_t all_inputs() const { return transposed ? count : shape[-1]; }
  int64_t outputs() const { return transposed ? n_columns() : count; }
};

struct ExpertSlices {
  Slice gate, up, down;
};

struct LayerSlices {
  Slice attn_norm, ffn_norm;
  std::vector<Slice> qkv;  // stacked: q rows, k rows, v rows
  Slice o, router;
  std::vector<ExpertSlices> experts;
};

struct ModelSlices {
  Slice embed, final_norm, head;
};

class Architecture {
 public:
  virtual ~Architecture() = default;
  virtual std::string_view model_type() const = 0;
  // Other tools may have their own word for it.
  virtual bool is(std::string_view model_type) const { return model_type == this->model_type(); }
  // Throws Error(bad_file) naming key, value and allowed range.
  virtual Spec spec(const Config& config) const = 0;
  virtual ModelSlices model(const Spec& spec) const = 0;
  // `has` tells which tensors the checkpoint holds, for families with more than one spelling.
  using Has = std::function<bool(std::string_view)>;
  virtual LayerSlices layer(const Spec& spec, int32_t layer, const Has& has) const = 0;
  // Everything that a PEFT adapter of this family may name.
  virtual SiteTable sites(const Spec& spec) const = 0;
};

// The family of config.json's model_type. Throws Error(unsupported) listing the known ones.
const Architecture& architecture_of(std::string_view model_type);

const Architecture& mixtral_architecture();
const Architecture& dbrx_architecture();

// Whole matrix [out, in], and a vector [n].
inline Slice whole(std::string name, int64_t out, int64_t in) {
  return {std::move(name), {out, in}, 0, out, false};
}
inline Slice vector_of(std::string name, int64_t n) { return {std::move(name), {n}, 0, 1, false}; }

}  // namespace lorry
