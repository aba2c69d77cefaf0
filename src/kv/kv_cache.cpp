#include "kv/kv_cache.h"

#include "base/error.h"

namespace lorry {

namespace {

// Bytes of one layer's K or V.
int64_t bytes_of(const Tensor& layout) {
  return layout.rows() * layout.pitch * size_of(layout.dtype);
}

}  // namespace

KvCache::KvCache(int32_t n_layers, const Tensor& layout, DeviceMemory* where) : layout_(layout) {
  LORRY_CHECK(n_layers > 0 && layout.shape.rank >= 2 && layout.shape.size() > 0, "{} layers of {}",
              n_layers, to_string(layout.shape));
  const auto bytes = static_cast<size_t>(bytes_of(layout));
  layers_.reserve(static_cast<size_t>(n_layers));
  for (int32_t i = 0; i < n_layers; ++i) {
    layers_.push_back({Buffer(bytes, where), Buffer(bytes, where)});
  }
}

KvLayer KvCache::layer(int32_t layer) const {
  LORRY_CHECK(layer >= 0 && layer < n_layers(), "layer {} of {}", layer, n_layers());
  const Layer& owned = layers_[static_cast<size_t>(layer)];
  KvLayer kv{layout_, layout_};
  kv.k.data = owned.k.data();
  kv.v.data = owned.v.data();
  return kv;
}

int64_t KvCache::block_bytes(int32_t n_layers, const Tensor& layout) {
  return 2 * n_layers * (bytes_of(layout) / layout.shape[0]);
}

}  // namespace lorry
