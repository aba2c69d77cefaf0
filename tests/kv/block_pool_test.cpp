#include "kv/block_pool.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include <gtest/gtest.h>

namespace lorry {
namespace {

BlockContent content(int32_t token, const Digest& parent = {}) {
  BlockContent c;
  c.parent = parent;
  c.tokens.fill(token);
  return c;
}

bool commit(BlockPool& pool, int32_t block, const BlockContent& c) {
  return pool.commit(block, hash_of(c), c);
}

int32_t find(const BlockPool& pool, const BlockContent& c) { return pool.find(hash_of(c), c); }

TEST(PrefixCache, HashDependsOnEveryTokenAndTheParent) {
  const BlockContent base = content(1);
  BlockContent other = base;
  for (size_t i = 0; i < other.tokens.size(); ++i) {
    other = base;
    other.tokens[i] = 2;
    EXPECT_NE(hash_of(other), hash_of(base)) << i;
  }
  for (size_t i = 0; i < 32; ++i) {
    other = base;
    other.parent[i] = 1;
    EXPECT_NE(hash_of(other), hash_of(base)) << i;
  }
  EXPECT_EQ(hash_of(content(1)), hash_of(base));
}

TEST(PrefixCache, ACollisionIsAMiss) {
  PrefixCache cache(4);
  const Digest hash{7};
  EXPECT_TRUE(cache.insert(2, hash, content(1)));
  EXPECT_EQ(cache.find(hash, content(1)), 2);
  EXPECT_EQ(cache.find(hash, content(2)), -1);
  EXPECT_EQ(cache.find(hash, content(1, {9})), -1);
  EXPECT_FALSE(cache.insert(3, hash, content(2)));
  EXPECT_FALSE(cache.contains(3));
  cache.erase(2);
  EXPECT_EQ(cache.find(hash, content(1)), -1);
  EXPECT_EQ(cache.size(), 0);
}

TEST(BlockPool, HandsOutEveryBlockOnce) {
  BlockPool pool(5);
  std::vector<int32_t> blocks;
  for (int i = 0; i < 5; ++i) blocks.push_back(pool.allocate());
  std::sort(blocks.begin(), blocks.end());
  EXPECT_EQ(blocks, (std::vector<int32_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(pool.n_free(), 0);
  EXPECT_EQ(pool.usage(), 1.0);
  pool.release(3);
  EXPECT_EQ(pool.allocate(), 3);
}

TEST(BlockPool, ABlockIsFreeWhenItsLastReferenceGoes) {
  BlockPool pool(1);
  const int32_t block = pool.allocate();
  pool.retain(block);
  pool.release(block);
  EXPECT_EQ(pool.n_free(), 0);
  pool.release(block);
  EXPECT_EQ(pool.n_free(), 1);
}

TEST(BlockPool, FreeBlocksKeepTheirContentUntilTheLeastRecentlyUsedIsNeeded) {
  BlockPool pool(4);
  std::vector<int32_t> blocks;
  for (int32_t i = 0; i < 3; ++i) {
    blocks.push_back(pool.allocate());
    EXPECT_TRUE(commit(pool, blocks.back(), content(i)));
  }
  for (const size_t i : {1U, 0U, 2U}) pool.release(blocks[i]);
  EXPECT_EQ(pool.n_free(), 4);
  // Used again: 1 is no longer the oldest.
  pool.retain(find(pool, content(1)));
  pool.release(blocks[1]);

  EXPECT_EQ(std::count(blocks.begin(), blocks.end(), pool.allocate()),
            0);  // the one without content
  EXPECT_EQ(pool.n_evicted(), 0);
  EXPECT_EQ(pool.allocate(), blocks[0]);
  EXPECT_EQ(find(pool, content(0)), -1);
  EXPECT_EQ(find(pool, content(1)), blocks[1]);
  EXPECT_EQ(pool.allocate(), blocks[2]);
  EXPECT_EQ(pool.allocate(), blocks[1]);
  EXPECT_EQ(pool.n_evicted(), 3);
  EXPECT_EQ(pool.n_cached(), 0);
  pool.check_integrity();
}

TEST(BlockPool, TheFirstBlockWithAContentIsTheOneThatIsFound) {
  BlockPool pool(2);
  const int32_t a = pool.allocate(), b = pool.allocate();
  EXPECT_TRUE(commit(pool, a, content(1)));
  EXPECT_FALSE(commit(pool, b, content(1)));
  EXPECT_EQ(find(pool, content(1)), a);
  EXPECT_FALSE(pool.is_cached(b));
}

TEST(BlockPoolDeathTest, MisuseAborts) {
  BlockPool pool(2);
  const int32_t block = pool.allocate();
  EXPECT_TRUE(commit(pool, block, content(1)));
  EXPECT_DEATH(commit(pool, block, content(2)), "already holds");
  pool.release(block);
  EXPECT_DEATH(pool.release(block), "which is free");
  EXPECT_DEATH(pool.release(-1), "block -1 of 2");
  EXPECT_DEATH(pool.release(2), "block 2 of 2");
  EXPECT_DEATH(pool.retain(1 - block), "free and without content");
  EXPECT_DEATH(commit(pool, block, content(2)), "which is free");
  pool.allocate();
  pool.allocate();
  EXPECT_DEATH(pool.allocate(), "no free block");
}

// Against a model that keeps plain lists and searches them.
class PoolModel {
 public:
  explicit PoolModel(int32_t n) : references_(static_cast<size_t>(n), 0) {}

  void allocated(int32_t block) {
    ASSERT_EQ(references(block), 0);
    const auto it = contents_.find(block);
    if (it != contents_.end()) {
      // Only when every free block has content, and this one was released first.
      for (int32_t b = 0; b < n(); ++b) {
        if (b == block || references(b) > 0) continue;
        ASSERT_TRUE(contents_.contains(b)) << "a block without content was free";
        ASSERT_LT(released_[block], released_[b]);
      }
      contents_.erase(it);
    }
    references(block) = 1;
  }
  void retained(int32_t block) { ++references(block); }
  void released(int32_t block) {
    if (--references(block) == 0) released_[block] = ++time_;
  }
  void committed(int32_t block, int32_t token, bool first) {
    ASSERT_EQ(first, find(token) < 0);
    if (first) contents_[block] = token;
  }
  int32_t find(int32_t token) const {
    for (const auto& [block, held] : contents_) {
      if (held == token) return block;
    }
    return -1;
  }
  bool has_content(int32_t block) const { return contents_.contains(block); }
  int32_t& references(int32_t block) { return references_[static_cast<size_t>(block)]; }
  int32_t n() const { return static_cast<int32_t>(references_.size()); }
  int32_t n_free() const {
    return static_cast<int32_t>(std::count(references_.begin(), references_.end(), 0));
  }

 private:
  std::vector<int32_t> references_;
  std::map<int32_t, int32_t> contents_;  // block -> token
  std::map<int32_t, int64_t> released_;
  int64_t time_ = 0;
};

TEST(BlockPool, AgreesWithAModelOverRandomCalls) {
  for (const int32_t n : {1, 3, 16}) {
    std::mt19937 random(static_cast<uint32_t>(n));
    const auto below = [&](int32_t bound) {
      return static_cast<int32_t>(random() % static_cast<uint32_t>(bound));
    };
    BlockPool pool(n);
    PoolModel model(n);
    std::vector<int32_t> held;  // one entry for each reference
    for (int step = 0; step < 30'000 && !HasFatalFailure(); ++step) {
      const int32_t token = below(2 * n);
      const size_t pick = held.empty() ? 0 : random() % held.size();
      switch (below(4)) {
        case 0:
          if (pool.n_free() == 0) break;
          held.push_back(pool.allocate());
          model.allocated(held.back());
          break;
        case 1:
          if (held.empty()) break;
          pool.release(held[pick]);
          model.released(held[pick]);
          held.erase(held.begin() + static_cast<int64_t>(pick));
          break;
        case 2:
          if (held.empty() || model.has_content(held[pick])) break;
          model.committed(held[pick], token, commit(pool, held[pick], content(token)));
          break;
        default:
          const int32_t found = find(pool, content(token));
          ASSERT_EQ(found, model.find(token));
          if (found < 0) break;
          pool.retain(found);
          model.retained(found);
          held.push_back(found);
      }
      ASSERT_EQ(pool.n_free(), model.n_free());
      pool.check_integrity();
    }
  }
}

}  // namespace
}  // namespace lorry
