// DoRA: gains from norms, by PEFT's formulas written out over the values in the file.
#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "adapters/formats.h"

namespace lorry::test {
namespace {

TEST_F(Formats, dora_divides_by_the_norm_of_each_output) {
  const std::string w2 = "model.layers.1.block_sparse_moe.experts.3.w2";
  const Site site{SiteKind::down, 1, 3};
  for (const bool rslora : {false, true}) {
    Draft d;
    d.config = config(rslora ? R"("use_dora": true, "use_rslora": true)" : R"("use_dora": true)");
    d.pair(w2, 2, kWidth, kHidden).add(w2 + ".lora_magnitude_vector", {kHidden});
    const auto adapter = load(d);
    const double s = rslora ? 4 / std::sqrt(2.0) : 2.0;
    const SitePatch p = patch(*adapter, site);
    ASSERT_NE(p.change, nullptr);
    EXPECT_EQ(p.rank, 2);
    EXPECT_EQ(p.change->weight, nullptr);
    for (int64_t o = 0; o < kHidden; ++o) {
      double square = 0;
      for (int64_t i = 0; i < kWidth; ++i) {
        double v = base(site, o, i);
        for (int64_t k = 0; k < 2; ++k) {
          v += s * value(d, w2 + ".lora_B.weight", o * 2 + k) *
               value(d, w2 + ".lora_A.weight", k * kWidth + i);
        }
        square += v * v;
      }
      const double want = value(d, w2 + ".lora_magnitude_vector", o) / std::sqrt(square);
      EXPECT_NEAR(p.change->gain[o], want, 1e-6 * (1 + std::abs(want))) << o;
    }
    EXPECT_TRUE(adapter->sites()[0].dora);
  }
}

TEST_F(Formats, dora_of_an_embedding_divides_by_the_norm_of_each_column) {
  Draft d;
  d.config = config(R"("use_dora": true)");
  d.add(embed_ + ".lora_embedding_A", {2, kVocab}).add(embed_ + ".lora_embedding_B", {kHidden, 2});
  d.add(embed_ + ".lora_magnitude_vector", {kHidden});
  const auto adapter = load(d);
  const SitePatch p = patch(*adapter, {SiteKind::embed});
  ASSERT_NE(p.change, nullptr);
  for (int64_t j = 0; j < kHidden; ++j) {
    double square = 0;
    for (int64_t id = 0; id < kVocab; ++id) {
      double v = base({SiteKind::embed}, id, j);
      for (int64_t k = 0; k < 2; ++k) {
        v += 2 * value(d, embed_ + ".lora_embedding_B", j * 2 + k) *
             value(d, embed_ + ".lora_embedding_A", k * kVocab + id);
      }
      square += v * v;
    }
    const double want = value(d, embed_ + ".lora_magnitude_vector", j) / std::sqrt(square);
    EXPECT_NEAR(p.change->gain[j], want, 1e-6 * (1 + std::abs(want))) << j;
  }
  // A is stored by token.
  for (int64_t id = 0; id < kVocab; ++id) {
    for (int64_t k = 0; k < 2; ++k) {
      EXPECT_EQ(double{floats(p.a)[id * 2 + k]},
                value(d, embed_ + ".lora_embedding_A", k * kVocab + id));
    }
  }
}

// The quirk of DBRX: modules_to_save = ["layer"] trains what LoRA of Wqkv stands on as well.
TEST_F(Formats, a_trained_base_layer_is_the_weight_under_lora_and_dora) {
  Draft d;
  d.config = config(R"("use_dora": true)");
  d.pair(q0_, 2, kHidden, 8).add(q0_ + ".base_layer.weight", {8, kHidden});
  d.add(q0_ + ".lora_magnitude_vector", {8});
  const auto adapter = load(d);
  const SitePatch p = patch(*adapter, {SiteKind::q, 0});
  ASSERT_NE(p.change, nullptr);
  ASSERT_NE(p.change->weight, nullptr);
  for (int64_t o = 0; o < 8; ++o) {
    double square = 0;
    for (int64_t i = 0; i < kHidden; ++i) {
      double v = value(d, q0_ + ".base_layer.weight", o * kHidden + i);
      EXPECT_EQ(double{floats(p.change->weight)[o * kHidden + i]}, v);
      for (int64_t k = 0; k < 2; ++k) {
        v += 2 * value(d, q0_ + ".lora_B.weight", o * 2 + k) *
             value(d, q0_ + ".lora_A.weight", k * kHidden + i);
      }
      square += v * v;
    }
    const double want = value(d, q0_ + ".lora_magnitude_vector", o) / std::sqrt(square);
    EXPECT_NEAR(p.change->gain[o], want, 1e-6 * (1 + std::abs(want)));
  }
  EXPECT_TRUE(adapter->sites()[0].dora && adapter->sites()[0].replaced);
}

TEST_F(Formats, dora_needs_a_magnitude_for_every_pair) {
  Draft d;
  d.config = config(R"("use_dora": true)");
  d.pair(q0_, 2, kHidden, 8);
  refused(Code::bad_file, {q0_ + ".lora_A.weight", "lora_magnitude_vector, found none"}, d);
  Draft short_one = d;
  short_one.add(q0_ + ".lora_magnitude_vector", {7});
  refused(Code::bad_file, {"lora_magnitude_vector", "expected shape [8], found [7]"}, short_one);
  Draft alone;
  alone.config = d.config;
  alone.add(q0_ + ".lora_magnitude_vector", {8});
  refused(Code::bad_file, {"lora_magnitude_vector", "found only this one"}, alone);
}

TEST_F(Formats, dora_of_target_parameters_is_refused) {
  const std::string experts = "model.layers.0.mlp.experts";
  Draft d;
  d.config = config(R"("use_dora": true, "target_parameters": ["down_proj"])");
  d.pair(experts, 2 * kExperts, kWidth, kHidden);
  refused(Code::unsupported, {experts, "use_dora is true", "target_parameters"}, d);
}

TEST_F(Formats, dora_of_a_zero_output_is_refused) {
  const std::string router = "model.layers.0.block_sparse_moe.gate";
  Draft d;
  d.config = config(R"("use_dora": true)");
  d.pair(router, 2, kHidden, kExperts).add(router + ".lora_magnitude_vector", {kExperts});
  d.add(router + ".base_layer.weight", {kExperts, kHidden});
  for (const char* part : {".base_layer.weight", ".lora_B.weight"}) {
    auto& values = d.tensors.at("base_model.model." + router + part).second;
    std::fill(values.begin(), values.end(), 0.0F);
  }
  refused(Code::bad_file, {router + ".lora_magnitude_vector", "a norm of 0"}, d);
}

}  // namespace
}  // namespace lorry::test
