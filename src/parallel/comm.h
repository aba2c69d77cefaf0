// Comm: how the ranks of one model exchange partial results. Solo, a group of one, is all there is
// today; every call is then free.
#pragma once
#include <memory>

#include "lorry/tensor.h"

namespace lorry {

class Comm {
 public:
  virtual ~Comm() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // x (f32) becomes the sum over ranks, in rank order.
  virtual void all_reduce(Tensor x) = 0;
};

std::unique_ptr<Comm> make_solo_comm();

}  // namespace lorry
