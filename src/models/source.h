// TensorSource: where a model's tensors come from: a checkpoint on disk, or random numbers made in
// memory for benchmarks.
#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "base/memory.h"
#include "lorry/tensor.h"
#include "weights/checkpoint.h"

namespace lorry {

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual bool has(std::string_view name) const = 0;
  // f32, f16 or bf16, of exactly `shape`; valid until the next call. Throws Error naming the
  // tensor.
  virtual Tensor tensor(const std::string& name, const Shape& shape) = 0;
};

std::unique_ptr<TensorSource> checkpoint_source(Checkpoint& checkpoint);

// bf16 values uniform in ±sqrt(3 / fan-in) (unit gain), a function of the name and the index; norms
// are one. Every name exists.
std::unique_ptr<TensorSource> random_source();

}  // namespace lorry
