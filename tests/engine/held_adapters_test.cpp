// What a follower remembers of adapters that come, move and go.
#include "engine/held_adapters.h"

#include <random>

#include <gtest/gtest.h>

#include "engine/harness.h"
#include "engine/loaded_model.h"

namespace lorry::test {
namespace {

TEST(HeldAdapters, are_no_more_than_fit_side_by_side) {
  Log log({LogLevel::error});
  const auto model = load_model(golden_options("mixtral-base", {}), log);
  const std::string folder = golden("mixtral-base/adapters/qv-r4-alpha32");
  const auto load = [&] { return load_adapter(folder, adapter_target(*model)); };
  const auto bytes = static_cast<int64_t>(load()->bytes());
  constexpr int64_t kPlaces = 3;
  Buffer memory(static_cast<size_t>(kPlaces * bytes));
  HeldAdapters held;
  std::mt19937 random(1);
  // Each place is given to another content again and again, wherever it begins.
  for (int32_t content = 0; content < 200; ++content) {
    const auto to = static_cast<int64_t>(random()) % ((kPlaces - 1) * bytes);
    held.expect(content, to, bytes);
    held.put(content, load());
    EXPECT_NO_THROW(held.view(content));
    EXPECT_LE(held.size(), static_cast<size_t>(kPlaces));
  }
  // One is read again elsewhere, one cannot be read.
  held = {};
  for (int32_t content = 0; content < kPlaces; ++content) {
    held.expect(content, content * bytes, bytes);
    held.put(content, load());
  }
  held.expect(0, 2 * bytes, bytes);
  held.put(0, load());
  EXPECT_EQ(held.size(), 2U);
  EXPECT_THROW(held.view(2), std::out_of_range);
  held.expect(5, 0, bytes);
  held.drop(5);
  EXPECT_EQ(held.size(), 2U);
  // A move over one that was left behind.
  held.move(0, memory.data(), bytes + 64, bytes);
  EXPECT_EQ(held.size(), 1U);
  bool in_memory = false;
  for (const SitePatch& p : held.view(0).patches) {
    if (p.a == nullptr) continue;
    EXPECT_GE(p.a, memory.data() + bytes + 64);
    EXPECT_LT(p.a, memory.data() + memory.size());
    in_memory = true;
  }
  EXPECT_TRUE(in_memory);
}

}  // namespace
}  // namespace lorry::test
