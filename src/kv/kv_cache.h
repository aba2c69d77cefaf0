// KvCache: the memory of all keys and values, allocated once at start: for each layer one
// contiguous K and one V of BlockPool::n_total() blocks, in the backend's block layout.
// Which block holds what is the BlockPool's business.
#pragma once
#include <cstdint>
#include <vector>

#include "base/memory.h"
#include "ops/ops.h"

namespace lorry {

class KvCache {
 public:
  // `layout`: one layer's K or V, from Ops::kv_layout; the first dimension counts blocks. Zeroed.
  // In the memory `where`, or the processor's. Throws Error(over_capacity).
  KvCache(int32_t n_layers, const Tensor& layout, DeviceMemory* where = nullptr);

  // Requires: 0 <= layer < n_layers().
  KvLayer layer(int32_t layer) const;
  int32_t n_layers() const { return static_cast<int32_t>(layers_.size()); }
  int64_t n_blocks() const { return layout_.shape[0]; }
  int64_t bytes() const { return n_blocks() * block_bytes(n_layers(), layout_); }

  // Calls f(begin, bytes) for each block of memory that there is.
  template <class F>
  void each_buffer(F&& f) const {
    for (const Layer& l : layers_) {
      f(l.k.data(), l.k.size());
      f(l.v.data(), l.v.size());
    }
  }

  // Bytes of one block over K and V of all layers: what the memory budget divides by.
  static int64_t block_bytes(int32_t n_layers, const Tensor& layout);

 private:
  struct Layer {
    Buffer k, v;
  };
  Tensor layout_;
  std::vector<Layer> layers_;
};

}  // namespace lorry
