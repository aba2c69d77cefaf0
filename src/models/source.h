// TensorSource: where a model's tensors come from: a checkpoint on disk, or random numbers made in
// memory for benchmarks.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/memory.h"
#include "lorry/tensor.h"
#include "weights/checkpoint.h"
#include "weights/quant_matrix.h"

namespace lorry {

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // Whether there is such a tensor, plain or quantised.
  virtual bool has(std::string_view name) const = 0;
  // f32, f16 or bf16, of exactly `shape`; valid until the next call. What is stored quantised is
  // widened. Throws Error naming the tensor.
  virtual Tensor tensor(const std::string& name, const Shape& shape) = 0;
  // How the checkpoint says that it is quantised.
  virtual QuantScheme scheme() const { return {}; }
  // Whether the matrix is stored quantised.
  virtual bool quantised(std::string_view) const { return false; }
  // Requires of both: quantised(name).
  virtual std::vector<int32_t> order(const std::string& name, int64_t in);
  virtual QuantMatrix matrix(const std::string& name, int64_t out, int64_t in);
};

// Throws Error for a quantisation that is not read.
std::unique_ptr<TensorSource> checkpoint_source(Checkpoint& checkpoint);

// bf16 values uniform in ±sqrt(3 / fan-in) (unit gain), a function of the name and the index; norms
// are one. Every name exists.
std::unique_ptr<TensorSource> random_source();

}  // namespace lorry
