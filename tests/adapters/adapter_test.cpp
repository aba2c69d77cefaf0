// Loading one adapter: faults are refused by name (rows F1-F8 of the table of bad inputs), and the
// arithmetic of stacked parameters at sizes where shapes alone do not tell.
#include "adapters/adapter.h"

#include <fstream>
#include <limits>
#include <random>

#include <gtest/gtest.h>

#include "adapters/support.h"
#include "base/float16.h"

namespace lorry {
namespace {

using test::Draft;

class AdapterLoad : public testing::Test {
 protected:
  // Two layers, four experts, hidden 8, expert width 6.
  AdapterLoad() : table_(test::mixtral_sites({2, 4, 8, 8, 4, 6, 10})) {}

  std::unique_ptr<Adapter> load(Draft& draft, const AdapterLimits& limits = {}) {
    return load_adapter(draft.write(temp_.path() + "/a"), {&table_, &ops_}, limits);
  }
  void refused(Code code, const std::vector<std::string>& parts, Draft draft) {
    test::expect_error(code, parts, [&] { load(draft); });
  }
  SitePatch pair(const Adapter& adapter, const Site& site) const {
    return adapter.view().patches[static_cast<size_t>(table_.index(site))];
  }

  const std::string q0_ = "model.layers.0.self_attn.q_proj";
  test::TempFolder temp_;
  test::PackOps ops_;
  SiteTable table_;
};

std::string config(const std::string& fields) {
  return R"({"peft_type": "LORA", "peft_version": "0.21.2", "r": 2, "lora_alpha": 4, )" + fields +
         "}";
}

TEST_F(AdapterLoad, OneModuleOfOneLayerIsApplied) {
  Draft draft;
  draft.pair(q0_, 2, 8, 8);
  const auto adapter = load(draft);
  ASSERT_EQ(adapter->sites().size(), 1U);
  EXPECT_EQ(adapter->sites()[0].module, q0_);
  EXPECT_EQ(adapter->bytes(), 128U);
  EXPECT_EQ(adapter->max_rank(), 2);
  EXPECT_EQ(pair(*adapter, {SiteKind::q, 0}).scale, 2.0F);
  EXPECT_EQ(pair(*adapter, {SiteKind::q, 1}).rank, 0);
  EXPECT_EQ(adapter->view().patches.size(), static_cast<size_t>(table_.index.size()));
}

TEST_F(AdapterLoad, F1_folder_that_does_not_exist) {
  test::expect_error(Code::not_found, {"/none", "no such folder"},
                     [&] { load_adapter(temp_.path() + "/none", {&table_, &ops_}); });
}

TEST_F(AdapterLoad, F2_missing_or_broken_config) {
  const std::string folder = temp_.path() + "/a";
  std::filesystem::create_directories(folder);
  const auto open = [&] { load_adapter(folder, {&table_, &ops_}); };
  test::expect_error(Code::not_found, {folder, "expected adapter_config.json"}, open);
  write_file(folder + "/adapter_config.json", "{oops");
  test::expect_error(Code::bad_file, {"adapter_config.json"}, open);
  write_file(folder + "/adapter_config.json", Draft{}.config);
  test::expect_error(Code::not_found, {folder, "expected adapter_model.safetensors"}, open);
  std::filesystem::remove(folder + "/adapter_config.json");
  write_file(folder + "/config.json", R"({"medusa_num_heads": 3})");
  test::expect_error(Code::unsupported, {"--max-medusa-heads"}, open);
}

TEST_F(AdapterLoad, F4_wrong_shapes) {
  const std::string a = "base_model.model." + q0_ + ".lora_A.weight";
  const std::string b = "base_model.model." + q0_ + ".lora_B.weight";
  refused(Code::bad_file, {a, "expected shape [2, 8]", "found [2, 7]"}, Draft{}.pair(q0_, 2, 7, 8));
  refused(Code::bad_file, {b, "expected shape [8, 2]", "found [9, 2]"}, Draft{}.pair(q0_, 2, 8, 9));
  refused(Code::bad_file, {a, "rank 2 by r and rank_pattern", "found [3, 8]"},
          Draft{}.pair(q0_, 3, 8, 8));
  refused(Code::bad_file, {a, "found [16]"},
          Draft{}.add(q0_ + ".lora_A.weight", {16}).add(q0_ + ".lora_B.weight", {8, 2}));
}

TEST_F(AdapterLoad, F4_names_that_fit_nowhere) {
  for (const char* module :
       {"model.layers.2.self_attn.q_proj", "model.layers.0.block_sparse_moe.experts.4.w1",
        "model.layers.0.self_attn.qkv", "model.norm", "model.layers.00.self_attn.q_proj", ""}) {
    refused(Code::bad_file, {std::string(module) + ".lora_A.weight", "no linear"},
            Draft{}.pair(q0_, 2, 8, 8).pair(module, 2, 8, 8));
  }
  Draft good;
  good.pair(q0_, 2, 8, 8);
  refused(Code::bad_file, {"fits nowhere"}, Draft(good).add(q0_ + ".lora_C.weight", {2}));
  refused(Code::bad_file, {"lora_magnitude_vector", "use_dora"},
          Draft(good).add(q0_ + ".lora_magnitude_vector", {8}));
  refused(Code::unsupported, {"bias"}, Draft(good).add(q0_ + ".lora_B.bias", {8}));
  refused(Code::bad_file, {"model.layers.9.norm.weight", "no weight", "fits nowhere"},
          Draft(good).add("model.layers.9.norm.weight", {8}));
  Draft unprefixed = good;
  unprefixed.tensors[q0_ + ".lora_A.weight"] = {{1}, {0.0F}};
  refused(Code::bad_file, {q0_, "starts with \"base_model.model.\""}, unprefixed);
  refused(Code::bad_file, {"holds no tensor"}, Draft{});
}

TEST_F(AdapterLoad, F4_a_without_b) {
  refused(Code::bad_file, {q0_ + ".lora_A.weight", "found only this one"},
          Draft{}.add(q0_ + ".lora_A.weight", {2, 8}));
  refused(Code::bad_file, {q0_ + ".lora_B.weight", "found only this one"},
          Draft{}.add(q0_ + ".lora_B.weight", {8, 2}));
}

TEST_F(AdapterLoad, F4_two_names_of_one_weight) {
  refused(Code::bad_file, {"mlp.gate.lora_B.weight", "already adapted", "block_sparse_moe.gate"},
          Draft{}
              .pair("model.layers.0.block_sparse_moe.gate", 2, 8, 4)
              .pair("model.layers.0.mlp.gate", 2, 8, 4));
}

TEST_F(AdapterLoad, F4_parameters_that_the_config_does_not_name) {
  const std::string experts = "model.layers.0.mlp.experts";
  Draft draft;
  draft.pair(experts, 8, 8, 12);
  refused(Code::bad_file, {experts, "target_parameters", "names no parameter"}, draft);
  draft.config = config(R"("target_parameters": ["gate_up_proj", "down_proj"])");
  refused(Code::bad_file, {experts, "expected shape"}, draft);
  Draft one;  // the wrapper of gate_up_proj is missing
  one.config = draft.config;
  one.pair(experts, 8, 6, 8);
  refused(Code::bad_file, {experts, "names 2 parameters", "tensors for 1"}, one);
  Draft deep;
  deep.config = config(R"("target_parameters": ["down_proj"])");
  deep.pair(experts + ".base_layer", 8, 6, 8);
  refused(Code::bad_file, {experts + ".base_layer", "at most 0 base_layer"}, deep);
}

TEST_F(AdapterLoad, InvocationTokensAreOfTheVocabulary) {
  Draft draft;
  draft.pair(q0_, 2, 8, 8);
  EXPECT_TRUE(load(draft)->invocation_tokens().empty());
  const Digest plain = load(draft)->digest();
  draft.config = config(R"("alora_invocation_tokens": [3, 9, 3])");
  const auto adapter = load(draft);
  const auto ids = adapter->invocation_tokens();
  EXPECT_EQ(std::vector<int32_t>(ids.begin(), ids.end()), (std::vector<int32_t>{3, 9, 3}));
  EXPECT_NE(adapter->digest(), plain);
  draft.config = config(R"("alora_invocation_tokens": [3, 10])");
  refused(Code::bad_file, {"alora_invocation_tokens holds 10", "0 to 9"}, draft);
}

TEST_F(AdapterLoad, F4_not_a_number) {
  for (const float x :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::max()}) {
    Draft draft;
    draft.pair(q0_, 2, 8, 8);
    draft.tensors["base_model.model." + q0_ + ".lora_B.weight"].second[5] = x;
    refused(Code::bad_file, {q0_ + ".lora_B.weight", "element 5 is", "finite"}, draft);
  }
}

// What would be infinite once it is rounded to float16, in each type that a file may have.
TEST_F(AdapterLoad, F4_beyond_the_range_of_float16) {
  const test::PackOps f16(Dtype::f16);
  for (const float x : {65504.0F, 65505.0F, 65536.0F, -1e9F}) {
    Draft draft;
    draft.pair(q0_, 2, 8, 8);
    draft.tensors["base_model.model." + q0_ + ".lora_B.weight"].second[5] = x;
    const std::string folder = draft.write(temp_.path() + "/a");
    const auto load = [&](const Ops& ops) { load_adapter(folder, {&table_, &ops}); };
    load(ops_);
    if (x == 65504.0F) {
      load(f16);
    } else {
      test::expect_error(Code::bad_file, {"lora_B.weight", "element 5 is", "float16 range"},
                         [&] { load(f16); });
    }
  }
  for (const float x : {65280.0F, 65536.0F}) {  // neighbours in bf16
    std::vector<bf16> a(16, to_bf16(1.0F)), b(16, to_bf16(x));
    const std::string folder = Draft{}.pair(q0_, 2, 8, 8).write(temp_.path() + "/b");
    write_safetensors(
        folder + "/adapter_model.safetensors",
        {{"base_model.model." + q0_ + ".lora_A.weight", view(a.data(), Dtype::bf16, {2, 8})},
         {"base_model.model." + q0_ + ".lora_B.weight", view(b.data(), Dtype::bf16, {8, 2})}});
    const auto load = [&] { load_adapter(folder, {&table_, &f16}); };
    if (x < 65504.0F) {
      load();
    } else {
      test::expect_error(Code::bad_file, {"lora_B.weight", "element 0 is 65536"}, load);
    }
  }
}

TEST_F(AdapterLoad, F4_types_other_than_floats) {
  Draft draft;
  draft.pair(q0_, 2, 8, 8);
  const std::string folder = draft.write(temp_.path() + "/a");
  std::vector<int8_t> a(16), b(16);
  write_safetensors(
      folder + "/adapter_model.safetensors",
      {{"base_model.model." + q0_ + ".lora_A.weight", view(a.data(), Dtype::i8, {2, 8})},
       {"base_model.model." + q0_ + ".lora_B.weight", view(b.data(), Dtype::i8, {8, 2})}});
  test::expect_error(Code::bad_file, {"lora_A.weight", "BF16", "found I8"},
                     [&] { load_adapter(folder, {&table_, &ops_}); });
}

TEST_F(AdapterLoad, F5_pickle_only) {
  Draft draft;
  draft.pair(q0_, 2, 8, 8);
  const std::string folder = draft.write(temp_.path() + "/a");
  std::filesystem::rename(folder + "/adapter_model.safetensors", folder + "/adapter_model.bin");
  test::expect_error(Code::unsupported, {"pickle adapters are refused; convert to safetensors"},
                     [&] { load_adapter(folder, {&table_, &ops_}); });
}

TEST_F(AdapterLoad, F8_larger_than_the_limit) {
  Draft draft;
  draft.pair(q0_, 2, 8, 8);
  AdapterLimits limits;
  limits.max_bytes = 300;
  test::expect_error(Code::bad_file, {"at most 300"}, [&] { load(draft, limits); });
  // 50 GB that are not there: refused by the size alone, nothing is read.
  const std::string folder = draft.write(temp_.path() + "/a");
  std::filesystem::resize_file(folder + "/adapter_model.safetensors", uintmax_t{50} << 30);
  test::expect_error(Code::bad_file, {"53687091200 bytes"},
                     [&] { load_adapter(folder, {&table_, &ops_}); });
}

TEST_F(AdapterLoad, F8_many_tiny_tensors) {
  Draft draft;
  for (int i = 0; i < 20000; ++i) draft.tensors[fmt::format("t{}", i)] = {{0}, {}};
  refused(Code::bad_file, {"tensor t"}, draft);
}

TEST_F(AdapterLoad, F8_names_of_any_length) {
  std::string name = q0_;
  for (int i = 0; i < 300000; ++i) name += ".base_layer";
  refused(Code::bad_file, {"no linear"}, Draft{}.pair(name, 2, 8, 8));
  refused(Code::bad_file, {"expected shape [8, 8]"}, Draft{}.add(name + ".weight", {8}));
}

TEST_F(AdapterLoad, FileThatChangesBetweenCheckAndRead) {
  Draft draft;
  draft.pair(q0_, 2, 8, 8);
  const std::string path = draft.write(temp_.path() + "/a");
  const auto folder = AdapterFolder::open(path, {&table_, &ops_}, {});
  EXPECT_EQ(folder->packed_bytes(), 128U) << "A and B, aligned to 64 bytes each";
  draft.pair("lm_head", 2, 8, 10).write(path);
  test::expect_error(Code::bad_file, {"changed while"}, [&] { folder->read(); });
}

TEST_F(AdapterLoad, AnyRankIsExact) {
  for (const int32_t rank : {1, 3, 5, 13, 17, 64, 511, 512}) {
    Draft draft;
    draft.config = fmt::format(
        R"({{"peft_type": "LORA", "r": {}, "lora_alpha": 7, "use_rslora": true}})", rank);
    draft.pair(q0_, rank, 8, 8);
    const auto adapter = load(draft);
    const SitePatch p = pair(*adapter, {SiteKind::q, 0});
    EXPECT_EQ(p.rank, rank);
    EXPECT_FLOAT_EQ(p.scale, 7.0F / std::sqrt(static_cast<float>(rank)));
  }
}

TEST_F(AdapterLoad, DigestIsTheContent) {
  Draft draft;
  draft.pair(q0_, 2, 8, 8);
  const Digest first = load(draft)->digest();
  Draft same = draft;
  same.config = config(R"("lora_dropout": 0.5, "base_model_name_or_path": "else")");
  EXPECT_EQ(load(same)->digest(), first) << "what does not change the result does not count";
  Draft value = draft;
  value.tensors.begin()->second.second[3] += 0.5F;
  EXPECT_NE(load(value)->digest(), first);
  Draft alpha = draft;
  alpha.config = R"({"peft_type": "LORA", "r": 2, "lora_alpha": 5})";
  EXPECT_NE(load(alpha)->digest(), first);
  Draft moved;
  moved.pair("model.layers.1.self_attn.q_proj", 2, 8, 8);
  EXPECT_NE(load(moved)->digest(), first);
}

// Stacked parameters where hidden and width are equal: only the version tells which way round.
class SquareStack : public testing::TestWithParam<bool> {};

TEST_P(SquareStack, DownProjIsTheSumOfOuterProducts) {
  constexpr int64_t kExperts = 3, kSize = 4, kRank = 2;
  const bool old = GetParam();
  const SiteTable table = test::mixtral_sites({1, 3, 4, 4, 4, 4, 6});
  const test::PackOps ops;
  const test::TempFolder temp;
  const std::string experts = "model.layers.0.mlp.experts";
  Draft draft;
  draft.config = fmt::format(
      R"({{"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_parameters": ["mlp.experts.down_proj"]{}}})",
      old ? "" : R"(, "peft_version": "0.19.0")");
  draft.pair(experts, kExperts * kRank, kSize, kSize);
  const auto& a = draft.tensors.at("base_model.model." + experts + ".lora_A.weight").second;
  draft.tensors["base_model.model." + experts + ".lora_B.weight"].first = {kSize, kRank * kExperts};
  const auto& b = draft.tensors.at("base_model.model." + experts + ".lora_B.weight").second;
  const auto adapter = load_adapter(draft.write(temp.path() + "/a"), {&table, &ops});
  for (int32_t e = 0; e < kExperts; ++e) {
    const SitePatch& pair =
        adapter->view().patches[static_cast<size_t>(table.index({SiteKind::down, 0, e}))];
    const std::vector<double> delta = test::delta_of(pair, kSize, kSize);
    for (int64_t o = 0; o < kSize; ++o) {
      for (int64_t i = 0; i < kSize; ++i) {
        const int64_t row = old ? i : o;  // of B
        const int64_t col = old ? o : i;  // of A
        double want = 0;
        for (int64_t k = 0; k < kRank; ++k) {
          want += static_cast<double>(
                      b[static_cast<size_t>(row * kRank * kExperts + k * kExperts + e)]) *
                  static_cast<double>(a[static_cast<size_t>((e * kRank + k) * kSize + col)]);
        }
        EXPECT_NEAR(delta[static_cast<size_t>(o * kSize + i)], 1.5 * want, 1e-6);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Versions, SquareStack, testing::Values(false, true));

}  // namespace
}  // namespace lorry
