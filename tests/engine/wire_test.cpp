// What ranks tell each other arrives as it was sent, in few bytes.
#include "engine/wire.h"

#include <limits>

#include <gtest/gtest.h>

#include "engine/orders.h"

namespace lorry {
namespace {

TEST(Wire, numbers_texts_and_lists_of_every_size) {
  const std::vector<int64_t> numbers = {0,
                                        1,
                                        -1,
                                        63,
                                        64,
                                        -64,
                                        -65,
                                        1 << 20,
                                        std::numeric_limits<int64_t>::max(),
                                        std::numeric_limits<int64_t>::min()};
  const std::vector<int32_t> list = {5, -1, std::numeric_limits<int32_t>::max(),
                                     std::numeric_limits<int32_t>::min(), 0};
  WireWriter w;
  for (const int64_t x : numbers) w.number(x);
  w.text("");
  w.text(std::string("a\0b", 3));
  w.list({});
  w.list(list);
  const Bytes bytes = w.take();
  WireReader r(bytes);
  for (const int64_t x : numbers) EXPECT_EQ(r.number(), x);
  EXPECT_EQ(r.text(), "");
  EXPECT_EQ(r.text(), std::string("a\0b", 3));
  std::vector<int32_t> got{1};
  r.list(got);
  EXPECT_TRUE(got.empty());
  r.list(got);
  EXPECT_EQ(got, list);
  EXPECT_TRUE(r.at_end());
  WireReader cut({bytes.data(), bytes.size() - 1});
  for (size_t i = 0; i < numbers.size(); ++i) cut.number();
  cut.text();
  cut.text();
  cut.list(got);
  EXPECT_DEATH(cut.list(got), "ends early");
}

TEST(Wire, an_order_with_a_merge) {
  AdapterOrder order{true, 7, {}, 0, 1 << 30, 4096};
  order.files.parts = {{"a", "/x/a", 0.3F}, {"b", "", -1.5F}};
  order.files.is_merge = true;
  order.files.merge = {MergeSpec::Strategy::dare_ties, 0.35, MergeSpec::MajoritySign::frequency,
                       ~uint64_t{0}};
  WireWriter w;
  write(w, order);
  const Bytes bytes = w.take();
  WireReader r(bytes);
  AdapterOrder got;
  read(r, got);
  EXPECT_TRUE(r.at_end());
  EXPECT_TRUE(got.is_read);
  EXPECT_EQ(got.content, 7);
  EXPECT_EQ(got.to, 1 << 30);
  EXPECT_EQ(got.bytes, 4096);
  ASSERT_EQ(got.files.parts.size(), 2U);
  EXPECT_EQ(got.files.parts[0].path, "/x/a");
  EXPECT_EQ(got.files.parts[1].weight, -1.5F);
  EXPECT_EQ(got.files.merge.strategy, MergeSpec::Strategy::dare_ties);
  EXPECT_EQ(got.files.merge.density, 0.35);
  EXPECT_EQ(got.files.merge.majority_sign, MergeSpec::MajoritySign::frequency);
  EXPECT_EQ(got.files.merge.seed, ~uint64_t{0});
}

// 64 sequences of 4,000 tokens, one new token each.
TEST(Wire, a_decoding_step_is_short) {
  constexpr int32_t kSequences = 64, kBlocks = 250;
  std::vector<int32_t> ids, positions, cu{0}, kv, tables, slots, adapters, rows;
  for (int32_t s = 0; s < kSequences; ++s) {
    ids.push_back(s * 401);
    positions.push_back(16 * kBlocks - 1);
    cu.push_back(s + 1);
    kv.push_back(16 * kBlocks);
    for (int32_t b = 0; b < kBlocks; ++b) tables.push_back(s * kBlocks + b);
    slots.push_back(16 * (s * kBlocks + kBlocks) - 1);
    adapters.push_back(s % 3 - 1);
    rows.push_back(s);
  }
  const ForwardInput in{ids,     positions, positions, cu,   kv,        tables,
                        kBlocks, slots,     adapters,  rows, Want::best};
  const std::vector<int32_t> contents = {4, 9};
  WireWriter w;
  write(w, in, contents);
  const Bytes bytes = w.take();
  EXPECT_LT(bytes.size(), 64U * 250U + 64U * 20U);
  OwnedInput got;
  WireReader r(bytes);
  read(r, got);
  EXPECT_TRUE(r.at_end());
  EXPECT_EQ(got.ids, ids);
  EXPECT_EQ(got.tables, tables);
  EXPECT_EQ(got.slots, slots);
  EXPECT_EQ(got.adapters, adapters);
  EXPECT_EQ(got.contents, contents);
  EXPECT_EQ(got.input.want, Want::best);
  EXPECT_EQ(got.input.max_blocks, kBlocks);
  EXPECT_EQ(got.input.logit_rows.size(), rows.size());
}

}  // namespace
}  // namespace lorry
