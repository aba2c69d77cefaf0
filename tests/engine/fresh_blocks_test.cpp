// Row H7 of the bad inputs: what a block of the cache holds from before, of another tenant or of a
// request that went wrong, is never attended to.
#include <cstring>
#include <numeric>

#include <gtest/gtest.h>

#include "engine/harness.h"
#include "engine/loaded_model.h"

namespace lorry::test {
namespace {

struct Case {
  const char* model;
  Dtype dtype;
  KvFormat kv;
};

class FreshBlocks : public testing::TestWithParam<Case> {
 protected:
  // The logits of a prompt in two chunks and of eight steps, over a cache of `byte` everywhere.
  static std::vector<float> run(LoadedModel& model, int byte) {
    const auto n_bytes = static_cast<size_t>(model.kv->bytes()) / (2 * model.layers.size());
    for (const KvLayer& layer : model.layers) {
      std::memset(layer.k.data, byte, n_bytes);
      std::memset(layer.v.data, byte, n_bytes);
    }
    std::vector<float> all;
    for (const auto& [first, n] : {std::pair{0, 21}, {21, 16}}) pass(model, first, n, all);
    for (int32_t i = 37; i < 45; ++i) pass(model, i, 1, all);
    return all;
  }

 private:
  static void pass(LoadedModel& model, int32_t first, int32_t n, std::vector<float>& all) {
    const auto count = static_cast<size_t>(n);
    const int32_t end = first + n;
    std::vector<int32_t> ids(count), positions(count), rows(count);
    std::iota(positions.begin(), positions.end(), first);
    std::iota(rows.begin(), rows.end(), 0);
    for (size_t i = 0; i < count; ++i) ids[i] = positions[i] * 37 % 250;
    std::vector<int32_t> table(static_cast<size_t>((end + kBlockTokens - 1) / kBlockTokens));
    std::iota(table.begin(), table.end(), 0);
    std::vector<int32_t> lens(positions);
    for (int32_t& len : lens) ++len;
    const std::vector<int32_t> cu{0, n}, kv{end}, adapters{-1};
    const ForwardInput in{
        ids,       positions, lens, cu, kv, table, static_cast<int32_t>(table.size()),
        positions, adapters,  rows};
    const Tensor logits = model.lm->forward(in, model.layers, {}).logits;
    for (int64_t r = 0; r < logits.rows(); ++r) {
      const float* row = logits.row<const float>(r);
      all.insert(all.end(), row, row + logits.cols());
    }
  }
};

TEST_P(FreshBlocks, H7_what_they_held_before_is_never_seen) {
  for (const Isa isa : usable_isas()) {
    EngineOptions o = golden_options(std::string(GetParam().model), {});
    o.dtype = GetParam().dtype;
    o.kv_format = GetParam().kv;
    o.isa = to_string(isa);
    o.device = "cpu";
    o.kv_tokens = 128;
    o.max_batch_tokens = 64;
    o.max_sequences = 8;
    o.max_logit_rows = 64;
    Log log({LogLevel::error});
    const auto model = load_model(o, log);
    const std::vector<float> want = run(*model, 0);
    // NaN in every float, and in the scales of int8.
    const std::vector<float> got = run(*model, 0xFF);
    ASSERT_EQ(got.size(), want.size());
    EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)), 0)
        << to_string(isa);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, FreshBlocks,
                         testing::Values(Case{"mixtral-base", Dtype::f32, KvFormat::act},
                                         Case{"mixtral-base", Dtype::bf16, KvFormat::act},
                                         Case{"mixtral-base", Dtype::bf16, KvFormat::int8},
                                         Case{"mixtral-sliding", Dtype::bf16, KvFormat::act},
                                         Case{"dbrx-base", Dtype::bf16, KvFormat::act}),
                         [](const auto& p) {
                           return test_name(p.param.model, p.param.dtype) +
                                  (p.param.kv == KvFormat::int8 ? "_int8" : "");
                         });

}  // namespace
}  // namespace lorry::test
