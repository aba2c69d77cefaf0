#include "kv/kv_cache.h"

#include <algorithm>
#include <set>

#include <gtest/gtest.h>

namespace lorry {
namespace {

TEST(KvCache, EveryLayerHasItsOwnZeroedKeysAndValues) {
  const Tensor layout = view(nullptr, Dtype::bf16, {6, 2, 16 * 8});
  const KvCache cache(3, layout);
  EXPECT_EQ(cache.n_layers(), 3);
  EXPECT_EQ(cache.n_blocks(), 6);
  const size_t layer_bytes = 6 * 2 * 16 * 8 * 2;
  std::set<const std::byte*> starts;
  for (int32_t i = 0; i < 3; ++i) {
    for (const Tensor& t : {cache.layer(i).k, cache.layer(i).v}) {
      EXPECT_EQ(t.shape, layout.shape);
      EXPECT_EQ(t.dtype, Dtype::bf16);
      EXPECT_EQ(t.pitch, layout.pitch);
      EXPECT_TRUE(starts.insert(t.data).second);
      EXPECT_TRUE(
          std::all_of(t.data, t.data + layer_bytes, [](std::byte b) { return b == std::byte{0}; }));
      std::fill_n(t.data, layer_bytes, std::byte{1});  // its own, or the next would not be zero
    }
  }
}

TEST(KvCache, CountsTheBytesOfABlockOverAllLayers) {
  const Tensor layout = view(nullptr, Dtype::f32, {5, 2, 16 * 4});
  EXPECT_EQ(KvCache::block_bytes(3, layout), 3 * 2 * (2 * 16 * 4) * 4);
  EXPECT_EQ(KvCache(3, layout).bytes(), 5 * KvCache::block_bytes(3, layout));
}

TEST(KvCacheDeathTest, ALayerThatIsNotThereAborts) {
  const KvCache cache(1, view(nullptr, Dtype::f32, {1, 1, 16}));
  EXPECT_DEATH(cache.layer(1), "layer 1 of 1");
}

}  // namespace
}  // namespace lorry
