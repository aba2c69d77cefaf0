// ReadAhead: has the next tensors of a layer read from the disk while those before them are packed.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "models/architecture.h"
#include "models/source.h"

namespace lorry {

class ReadAhead {
 public:
  explicit ReadAhead(const TensorSource& source) : source_(source) {}

  // The layer comes next, its slices in this order.
  void begin(const LayerSlices& l);
  // Its tensor `name` is packed now.
  void at(const std::string& name);

 private:
  const TensorSource& source_;
  std::vector<std::string> coming_;  // tensors, each once
  size_t asked_ = 0;                 // of them
};

}  // namespace lorry
