// ReadAhead: has the next slices of a layer read from the disk while those before them are packed.
#pragma once
#include <cstddef>
#include <vector>

#include "models/architecture.h"
#include "models/source.h"

namespace lorry {

class ReadAhead {
 public:
  explicit ReadAhead(const TensorSource& source) : source_(source) {}

  // The layer comes next, its slices in this order.
  void begin(const LayerSlices& l);
  // This slice of it is packed now.
  void at(const Slice& slice);

 private:
  const TensorSource& source_;
  std::vector<Slice> coming_;
  size_t asked_ = 0;  // of them
};

}  // namespace lorry
