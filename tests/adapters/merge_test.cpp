// Merging adapters: what is refused and how, any ranks, alphas and scales by the formulas of
// PEFT's add_weighted_adapter written out, and seeded DARE.
#include "adapters/merge.h"

#include <limits>

#include <gtest/gtest.h>

#include "adapters/describe.h"
#include "adapters/support.h"

namespace lorry {
namespace {

using test::Draft;
using Strategy = MergeSpec::Strategy;

MergeSpec by(Strategy strategy, double density = 1, uint64_t seed = 0) {
  MergeSpec spec;
  spec.strategy = strategy;
  spec.density = density;
  spec.seed = seed;
  return spec;
}

Draft draft(int32_t r, double alpha, const std::string& fields = "") {
  Draft d;
  d.config = fmt::format(
      R"({{"peft_type": "LORA", "peft_version": "0.21.2", "r": {}, "lora_alpha": {}{}}})", r, alpha,
      fields);
  return d;
}

class Merge : public testing::Test {
 protected:
  // Two layers, four experts, hidden 8, expert width 6.
  Merge() : table_(test::mixtral_sites({2, 4, 8, 8, 4, 6, 10})) {}

  struct Part {
    Draft draft;
    float weight;
  };

  // Named a, b, ...
  std::vector<MergePart> write(std::vector<Part> parts) const {
    std::vector<MergePart> written;
    for (size_t i = 0; i < parts.size(); ++i) {
      const std::string name(1, static_cast<char>('a' + i));
      written.push_back({parts[i].draft.write(temp_.path() + "/" + name), parts[i].weight, name});
    }
    return written;
  }
  AdapterTarget target() const {
    return {&table_, &ops_, [](Tensor y, const Site&, int64_t) {
              for (int64_t r = 0; r < y.rows(); ++r) std::fill_n(y.row<float>(r), y.cols(), 0.5F);
            }};
  }
  std::unique_ptr<AdapterFolder> open(const std::vector<MergePart>& parts, const MergeSpec& spec,
                                      const AdapterLimits& limits = {}) const {
    return AdapterFolder::open_merged(parts, spec, target(), limits);
  }
  std::unique_ptr<Adapter> merge(std::vector<Part> parts, const MergeSpec& spec,
                                 const AdapterLimits& limits = {}) {
    return open(write(std::move(parts)), spec, limits)->read();
  }
  SitePatch pair(const Adapter& adapter, const Site& site) const {
    return adapter.view().patches[static_cast<size_t>(table_.index(site))];
  }
  const std::vector<float>& values(const Draft& d, const std::string& name) const {
    return d.tensors.at("base_model.model." + name).second;
  }
  static std::vector<float> floats(const std::byte* data, size_t n) {
    const auto* x = reinterpret_cast<const float*>(data);
    return {x, x + n};
  }

  const std::string q0_ = "model.layers.0.self_attn.q_proj";
  const Site q_site_{SiteKind::q, 0};
  test::TempFolder temp_;
  test::PackOps ops_;
  SiteTable table_;
};

TEST_F(Merge, linear_of_unequal_ranks_pads_with_zeros) {
  const Draft a = draft(2, 4).pair(q0_, 2, 8, 8, 1);  // scale 2
  const Draft b = draft(3, 9, R"(, "use_rslora": true)").pair(q0_, 3, 8, 8, 2);
  const auto merged = merge({{a, 0.7F}, {b, -0.5F}}, by(Strategy::linear));
  const SitePatch p = pair(*merged, q_site_);
  ASSERT_EQ(p.rank, 3);
  EXPECT_EQ(p.scale, 1.0F) << "the first has no rsLoRA: 3 / 3";
  const double ta = 0.7 * 2, tb = -0.5 * 9 / std::sqrt(3.0);
  const std::vector<float> got_a = floats(p.a, 24), got_b = floats(p.b, 24);
  for (size_t k = 0; k < 3; ++k) {
    for (size_t j = 0; j < 8; ++j) {
      const auto at = [&](const Draft& d, bool is_b, size_t r) {
        const auto& x = values(d, q0_ + (is_b ? ".lora_B.weight" : ".lora_A.weight"));
        return k >= r ? 0.0 : static_cast<double>(is_b ? x[j * r + k] : x[k * 8 + j]);
      };
      EXPECT_NEAR(got_a[k * 8 + j],
                  std::sqrt(ta) * at(a, false, 2) - std::sqrt(-tb) * at(b, false, 3), 2e-6);
      EXPECT_NEAR(got_b[j * 3 + k],
                  std::sqrt(ta) * at(a, true, 2) + std::sqrt(-tb) * at(b, true, 3), 2e-6);
    }
  }
}

TEST_F(Merge, ties_prunes_each_adapter_by_its_own_size) {
  const Draft a = draft(1, 1).pair(q0_, 1, 8, 8, 1);
  const Draft b = draft(2, 2).pair(q0_, 2, 8, 8, 2);
  const auto merged = merge({{a, 1}, {b, 1}}, by(Strategy::ties, 0.5));
  const std::vector<float> got = floats(pair(*merged, q_site_).a, 16);
  std::vector<float> x = values(a, q0_ + ".lora_A.weight");
  std::vector<float> y = values(b, q0_ + ".lora_A.weight");
  keep_largest(x, 0.5);  // 4 of 8
  keep_largest(y, 0.5);  // 8 of 16
  x.resize(16);
  for (size_t i = 0; i < 16; ++i) {
    const float sum = x[i] + y[i];
    const bool has_x = x[i] != 0 && (x[i] > 0) == (sum >= 0);
    const bool has_y = y[i] != 0 && (y[i] > 0) == (sum >= 0);
    const float n = std::max(1.0F, static_cast<float>(has_x) + static_cast<float>(has_y));
    EXPECT_NEAR(got[i], ((has_x ? x[i] : 0) + (has_y ? y[i] : 0)) / n, 2e-6F) << i;
  }
}

TEST_F(Merge, use_rslora_is_inherited_from_the_first) {
  const Draft a = draft(2, 4, R"(, "use_rslora": true)").pair(q0_, 2, 8, 8, 1);
  const Draft b = draft(2, 4, R"(, "rank_pattern": {"k_proj": 5})").pair(q0_, 2, 8, 8, 2);
  EXPECT_FLOAT_EQ(pair(*merge({{a, 1}, {b, 1}}, by(Strategy::cat)), q_site_).scale, std::sqrt(7.0F))
      << "r of the merged config is 2 + 5, as PEFT counts";
  EXPECT_FLOAT_EQ(pair(*merge({{a, 1}, {b, 1}}, by(Strategy::linear)), q_site_).scale,
                  std::sqrt(5.0F));
  EXPECT_FLOAT_EQ(pair(*merge({{b, 1}, {a, 1}}, by(Strategy::cat)), q_site_).scale, 1.0F);
}

TEST_F(Merge, modules_are_the_union_and_both_spellings_are_one) {
  Draft a = draft(2, 4).pair("model.layers.0.block_sparse_moe.gate", 2, 8, 4, 1);
  a.pair(q0_, 2, 8, 8);
  Draft b = draft(2, 4).pair("model.layers.0.mlp.gate", 2, 8, 4, 2);
  b.pair("lm_head", 2, 8, 10);
  const auto merged = merge({{a, 1}, {b, 1}}, by(Strategy::linear));
  ASSERT_EQ(merged->sites().size(), 3U);
  EXPECT_EQ(merged->sites()[1].module, "model.layers.0.block_sparse_moe.gate");
  EXPECT_NE(describe_text(*merged).find("3 sites"), std::string::npos);
  const std::vector<float> alone = floats(pair(*merged, {SiteKind::lm_head}).a, 16);
  const std::vector<float>& own = values(b, "lm_head.lora_A.weight");
  for (size_t i = 0; i < 16; ++i) EXPECT_FLOAT_EQ(alone[i], std::sqrt(2.0F) * own[i]);
}

TEST_F(Merge, experts_each_and_experts_together_merge_by_cat_only) {
  const std::string experts = "model.layers.0.";
  Draft each = draft(2, 4).pair(experts + "block_sparse_moe.experts.1.w2", 2, 6, 8);
  Draft fused = draft(2, 4, R"(, "target_parameters": ["down_proj"])");
  fused.pair(experts + "mlp.experts", 8, 6, 8);
  EXPECT_EQ(merge({{each, 1}, {fused, 1}}, by(Strategy::cat))->sites().size(), 4U);
  for (const Strategy s : {Strategy::linear, Strategy::ties, Strategy::dare_linear}) {
    test::expect_error(Code::unsupported,
                       {"a and b cannot be merged by", "block_sparse_moe.experts.1.w2",
                        "mlp.experts.down_proj", "use cat"},
                       [&] { merge({{each, 1}, {fused, 1}}, by(s, 0.5)); });
  }
}

TEST_F(Merge, copies_of_base_weights_are_no_obstacle_other_weights_are) {
  Draft a = draft(2, 4).pair("lm_head", 2, 8, 10, 1).add("lm_head.base_layer.weight", {10, 8});
  const Draft b = draft(2, 4).pair("lm_head", 2, 8, 10, 2);
  std::vector<float>& copy = a.tensors["base_model.model.lm_head.base_layer.weight"].second;
  std::fill(copy.begin(), copy.end(), 0.5F);
  EXPECT_EQ(merge({{a, 1}, {b, 1}}, by(Strategy::cat))->sites().size(), 1U);
  copy[7] += 1;
  test::expect_error(Code::unsupported, {"lm_head.base_layer", "whole weights", "cannot be merged"},
                     [&] { merge({{a, 1}, {b, 1}}, by(Strategy::cat)); });
}

TEST_F(Merge, what_is_no_pair_is_refused_by_name) {
  const auto refused = [&](const Draft& d, const std::vector<std::string>& parts) {
    test::expect_error(Code::unsupported, parts, [&] { merge({{d, 1}}, by(Strategy::linear)); });
  };
  refused(draft(2, 4, R"(, "use_dora": true)")
              .pair(q0_, 2, 8, 8)
              .add(q0_ + ".lora_magnitude_vector", {8}),
          {q0_ + ".lora_magnitude_vector", "DoRA (use_dora)", "cannot be merged"});
  refused(draft(2, 4, R"(, "modules_to_save": ["lm_head"])")
              .pair(q0_, 2, 8, 8)
              .add("lm_head.weight", {10, 8}),
          {"lm_head.weight", "modules_to_save", "cannot be merged"});
  refused(draft(2, 4, R"(, "trainable_token_indices": [1, 2])")
              .pair(q0_, 2, 8, 8)
              .add("model.embed_tokens.token_adapter.trainable_tokens_delta", {2, 8}),
          {"trainable_tokens_delta", "trainable_token_indices", "cannot be merged"});
  refused(draft(2, 4, R"(, "alora_invocation_tokens": [1, 2])").pair(q0_, 2, 8, 8),
          {"adapter_config.json", "alora_invocation_tokens", "cannot be merged"});
}

TEST_F(Merge, limits_hold_for_the_merged_adapter) {
  const Draft a = draft(2, 4).pair(q0_, 2, 8, 8);
  AdapterLimits limits;
  limits.max_rank = 3;
  EXPECT_EQ(merge({{a, 1}, {a, 1}}, by(Strategy::linear), limits)->max_rank(), 2);
  test::expect_error(Code::invalid_argument, {q0_, "a rank of 4", "at most 3"},
                     [&] { merge({{a, 1}, {a, 1}}, by(Strategy::cat), limits); });
  limits.max_bytes = 500;  // each file has 128 bytes of tensors, and a header
  test::expect_error(Code::over_capacity, {"cat(a*1,b*1,c*1,d*1)", "larger than 500"},
                     [&] { merge({{a, 1}, {a, 1}, {a, 1}, {a, 1}}, by(Strategy::cat), limits); });
}

TEST_F(Merge, values_that_are_no_numbers_are_refused_before_and_after) {
  Draft a = draft(2, 4).pair(q0_, 2, 8, 8);
  test::expect_error(Code::bad_file, {"cat(a*1e+38,b*1)", q0_, "is inf"}, [&] {
    Draft large = a;
    for (float& x : large.tensors.begin()->second.second) x *= 10;
    merge({{large, 1e38F}, {a, 1}}, by(Strategy::cat));
  });
  test::expect_error(Code::invalid_argument, {"weight", "of a", q0_, "out of range"},
                     [&] { merge({{a, 3e38F}, {a, 1}}, by(Strategy::cat)); });
  Draft nan = a;
  nan.tensors.begin()->second.second[3] = std::numeric_limits<float>::quiet_NaN();
  test::expect_error(Code::bad_file, {"/b/adapter_model.safetensors", q0_, "element 3 is nan"},
                     [&] { merge({{a, 1}, {nan, 1}}, by(Strategy::ties, 0.5)); });
}

TEST_F(Merge, a_file_that_changes_between_check_and_read_is_refused) {
  Draft a = draft(2, 4).pair(q0_, 2, 8, 8);
  const auto folder = open(write({{a, 1}, {a, 1}}), by(Strategy::cat));
  EXPECT_EQ(folder->packed_bytes(), 256U);
  a.pair("lm_head", 2, 8, 10).write(temp_.path() + "/b");
  test::expect_error(Code::bad_file, {"/b/", "changed while"}, [&] { folder->read(); });
}

TEST_F(Merge, digest_is_the_content) {
  const Draft a = draft(2, 4).pair(q0_, 2, 8, 8, 1), b = draft(2, 4).pair(q0_, 2, 8, 8, 2);
  const auto digest = [&](float w, const MergeSpec& spec) {
    return merge({{a, w}, {b, 0.5F}}, spec)->digest();
  };
  const Digest first = digest(1, by(Strategy::linear));
  EXPECT_EQ(digest(1, by(Strategy::linear)), first);
  EXPECT_NE(digest(0.9F, by(Strategy::linear)), first);
  EXPECT_NE(digest(1, by(Strategy::cat)), first);
  EXPECT_EQ(digest(1, by(Strategy::magnitude_prune)), first) << "density 1 prunes nothing";
}

TEST_F(Merge, dare_is_seeded_and_close_to_linear_on_average) {
  const Draft a = draft(2, 4).pair(q0_, 2, 8, 8, 1), b = draft(2, 4).pair(q0_, 2, 8, 8, 2);
  const std::vector<MergePart> parts = write({{a, 1}, {b, 0.5F}});
  const auto matrix = [&](const MergeSpec& spec) {
    return floats(pair(*open(parts, spec)->read(), q_site_).a, 16);
  };
  EXPECT_EQ(matrix(by(Strategy::dare_linear, 0.5, 3)), matrix(by(Strategy::dare_linear, 0.5, 3)));
  EXPECT_NE(matrix(by(Strategy::dare_linear, 0.5, 3)), matrix(by(Strategy::dare_linear, 0.5, 4)));
  EXPECT_EQ(matrix(by(Strategy::dare_ties, 0.5, 3)), matrix(by(Strategy::dare_ties, 0.5, 3)));
  const std::vector<float> linear = matrix(by(Strategy::linear));
  std::vector<double> mean(16);
  constexpr int kSeeds = 800;
  for (int s = 0; s < kSeeds; ++s) {
    const std::vector<float> x = matrix(by(Strategy::dare_linear, 0.5, static_cast<uint64_t>(s)));
    for (size_t i = 0; i < 16; ++i) mean[i] += static_cast<double>(x[i]) / kSeeds;
  }
  // One standard deviation: at most (sqrt(2) + 1) * 1 / sqrt(kSeeds).
  for (size_t i = 0; i < 16; ++i) EXPECT_NEAR(mean[i], linear[i], 5 * 1.74 / std::sqrt(kSeeds));
}

TEST_F(Merge, lorax_fault_9_merging_as_peft_does) {
  // Alpha counts: twice the alpha is twice the weight, to the bit.
  const auto of_alpha = [&](double alpha) { return draft(2, alpha).pair(q0_, 2, 8, 8, 1); };
  const Draft other = draft(3, 3).pair(q0_, 3, 8, 8, 2);  // and any ranks merge
  for (const Strategy s : {Strategy::linear, Strategy::cat, Strategy::ties, Strategy::dare_linear,
                           Strategy::dare_ties, Strategy::magnitude_prune}) {
    const MergeSpec spec = by(s, 0.5, 9);
    EXPECT_EQ(merge({{of_alpha(8), 0.5F}, {other, 1}}, spec)->digest(),
              merge({{of_alpha(4), 1}, {other, 1}}, spec)->digest())
        << to_string(s);
  }
  // DARE rescales what it keeps: one adapter's lm_head, beside another that has none.
  Draft head = draft(2, 2).pair("lm_head", 2, 8, 10);
  const auto merged = merge({{head, 1}, {other, 1}}, by(Strategy::dare_linear, 0.25, 1));
  const std::vector<float> got = floats(pair(*merged, {SiteKind::lm_head}).a, 16);
  const std::vector<float>& own = values(head, "lm_head.lora_A.weight");
  int kept = 0;
  for (size_t i = 0; i < 16; ++i) {
    if (got[i] == 0) continue;
    EXPECT_EQ(got[i], own[i] / 0.25F);
    ++kept;
  }
  EXPECT_GT(kept, 0);
  EXPECT_LT(kept, 16);
  // A density that was left out (LoRAX: 0.0) zeroes nothing, it is refused.
  for (const Strategy s : {Strategy::ties, Strategy::dare_linear, Strategy::dare_ties}) {
    test::expect_error(Code::invalid_argument, {"`density` must be > 0.0 and <= 1.0", to_string(s)},
                       [&] { merge({{head, 1}, {other, 1}}, by(s, 0)); });
  }
}

TEST_F(Merge, F14_ids_and_weights_that_do_not_match) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const auto refused = [](const std::string& sentence, size_t n, std::vector<float> weights,
                          const MergeSpec& spec = {}) {
    test::expect_error(Code::invalid_argument, {sentence}, [&] { check_merge(n, weights, spec); });
  };
  refused("at least one adapter ID must be provided when setting `adapters`", 0, {});
  refused("number of adapter IDs must match number of adapter weights", 2, {1});
  refused("number of adapter IDs must match number of adapter weights", 1, {1, 1});
  refused("at most 16 adapters can be merged. Given: 17", 17, std::vector<float>(17, 1));
  refused("adapter weights must be finite numbers. Given: nan", 2, {1, nan});
  refused("adapter weights must be finite numbers. Given: -inf", 2, {-inf, 1});
  for (const double density : {-0.5, 0.0, 1.5, static_cast<double>(nan)}) {
    refused("`density` must be", 1, {1}, by(Strategy::ties, density));
    refused("`density` must be", 1, {1}, by(Strategy::magnitude_prune, density));
    check_merge(1, std::vector<float>{1}, by(Strategy::linear, density));
  }
  check_merge(16, std::vector<float>(16, -1), by(Strategy::dare_ties, 1));
  test::expect_error(Code::invalid_argument, {"at least one adapter ID"},
                     [&] { open({}, by(Strategy::cat)); });
  Draft a = draft(2, 4).pair(q0_, 2, 8, 8);
  test::expect_error(Code::invalid_argument, {"must be finite"},
                     [&] { open(write({{a, 1}, {a, nan}}), by(Strategy::cat)); });
}

}  // namespace
}  // namespace lorry
