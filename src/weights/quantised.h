// QuantReader: the Linears that a checkpoint keeps quantised, each brought to one form whatever
// packed it (GPTQ, AWQ, FP8, compressed-tensors). What it reads counts as used in the Checkpoint,
// and so does what belongs to a quantised module and is not needed (scales of activations, of K and
// V). One thread; the Checkpoint must outlive it.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "weights/checkpoint.h"
#include "weights/quant_matrix.h"
#include "weights/quant_scheme.h"

namespace lorry {

class QuantReader {
 public:
  QuantReader(Checkpoint& checkpoint, QuantScheme scheme);

  const QuantScheme& scheme() const { return scheme_; }

  // Whether the Linear `module` (the name of its tensor without ".weight") is quantised.
  bool has(std::string_view module) const;
  // Requires: has(module). zero has data exactly when scheme().zeros. Throws Error: bad_file naming
  // file and tensor for a tensor that is missing, has another type or shape, or values that the
  // scheme does not allow; unsupported for sizes that do not fill whole words.
  QuantMatrix read(const std::string& module, int64_t out, int64_t in);
  // The order of its inputs alone, as QuantMatrix::order; empty: they are in order.
  std::vector<int32_t> order(const std::string& module, int64_t in);

 private:
  struct Size {
    int64_t out, in;
  };
  QuantMatrix matrix(Size size, const std::vector<int32_t>& order) const;
  std::vector<int32_t> read_order(const std::string& module, Size size);
  QuantMatrix read_gptq(const std::string& module, Size size);
  QuantMatrix read_awq(const std::string& module, Size size);
  QuantMatrix read_plain(const std::string& module, Size size);
  QuantMatrix read_packed(const std::string& module, Size size);
  void read_gptq_zeros(const QuantMatrix& m, const std::string& name);
  void read_scales(const QuantMatrix& m, const std::string& name);
  void read_plain_zeros(const QuantMatrix& m, const std::string& name, bool packed);
  void check_weight_shape(const std::string& name, Size size);
  void dismiss_bias(const std::string& name, int64_t out);

  Checkpoint& checkpoint_;
  QuantScheme scheme_;
};

}  // namespace lorry
