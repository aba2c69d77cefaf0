#include "engine/batch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lorry::test {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A sequence of `n` tokens 100, 101 ... in blocks `first_block`, first_block + 1 ...
Sequence sequence(int32_t n, int32_t first_block) {
  Sequence seq;
  for (int32_t i = 0; i < n; ++i) seq.tokens.push_back(100 + i);
  seq.n_prompt = n;
  for (int32_t i = 0; i < blocks_for(n); ++i) seq.blocks.push_back(first_block + i);
  return seq;
}

std::vector<int32_t> vec(std::span<const int32_t> s) { return {s.begin(), s.end()}; }

TEST(BatchBuilder, AChunkThatCrossesTheAdaptersFirstRowIsTwoSequencesOverOneTable) {
  const std::vector<SitePatch> pairs(1);
  Sequence base = sequence(2, 0), crossing = sequence(20, 4), plain = sequence(3, 9);
  crossing.adapter_from = 17;
  plain.adapter_from = 0;
  const Chunk chunks[] = {{&crossing, 15, 5, 4}, {&plain, 1, 2, 1}, {&base, 0, 2, 1}};
  BatchBuilder batch(ForwardLimits{});
  for (const Chunk& c : chunks) {
    batch.add(c, c.seq == &base ? AdapterView{} : AdapterView{pairs});
  }
  const ForwardInput& in = batch.build();
  // Rows: 15 and 16 of the first and both of the last without, then 17 ... 19 and 1, 2 with.
  EXPECT_THAT(vec(in.input_ids), ElementsAre(100, 101, 115, 116, 117, 118, 119, 101, 102));
  EXPECT_THAT(vec(in.position_ids), ElementsAre(0, 1, 15, 16, 17, 18, 19, 1, 2));
  EXPECT_THAT(vec(in.slots), ElementsAre(0, 1, 79, 80, 81, 82, 83, 145, 146));
  EXPECT_THAT(vec(in.cu_seqlens), ElementsAre(0, 2, 4, 7, 9));
  EXPECT_THAT(vec(in.kv_lens), ElementsAre(2, 17, 20, 3));
  EXPECT_THAT(vec(in.adapters), ElementsAre(-1, -1, 0, 0));
  EXPECT_EQ(in.max_blocks, 2);
  EXPECT_THAT(vec(in.block_tables), ElementsAre(0, -1, 4, 5, 4, 5, 9, -1));
  EXPECT_EQ(batch.views().size(), 1U);
  // A chunk's logit rows follow each other, whichever part they are in.
  EXPECT_THAT(vec(in.logit_rows), ElementsAre(1, 3, 4, 5, 6, 8));
  for (const BatchEntry& e : batch.entries()) {
    EXPECT_EQ(e.first_logit_row, e.chunk == &chunks[2] ? 0 : e.chunk == &chunks[0] ? 1 : 5);
  }
}

TEST(BatchBuilder, AChunkOnOneSideOfTheAdaptersFirstRowIsOneSequence) {
  const std::vector<SitePatch> pairs(1);
  Sequence seq = sequence(20, 0);
  seq.adapter_from = 10;
  BatchBuilder batch(ForwardLimits{});
  const Chunk before{&seq, 0, 10, 0}, after{&seq, 10, 10, 1};
  batch.add(before, {pairs});
  EXPECT_THAT(vec(batch.build().adapters), ElementsAre(-1));
  EXPECT_THAT(batch.views(), IsEmpty()) << "an adapter without rows";
  batch.clear();
  batch.add(after, {pairs});
  EXPECT_THAT(vec(batch.build().adapters), ElementsAre(0));
  EXPECT_THAT(vec(batch.build().cu_seqlens), ElementsAre(0, 10));
  seq.adapter_from = kNoAdapter;
  batch.clear();
  batch.add(after, {pairs});
  EXPECT_THAT(vec(batch.build().adapters), ElementsAre(-1));
}

}  // namespace
}  // namespace lorry::test
