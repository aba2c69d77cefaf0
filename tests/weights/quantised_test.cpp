// Quantised checkpoints that other projects packed (tests/golden/quantised), and broken ones.
#include "weights/quantised.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "weights/files.h"
#include "weights/unpack.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> case_names() {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(test::golden("quantised"))) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string digest_of(const QuantMatrix& m) {
  std::vector<float> values(static_cast<size_t>(m.q.shape.size()));
  dequantise(view(values.data(), Dtype::f32, m.q.shape), m, 0);
  Sha256 sha;
  sha.update(std::as_bytes(std::span(values)));
  return to_hex(sha.finish());
}

class Golden : public testing::TestWithParam<std::string> {};

TEST_P(Golden, every_module_stands_for_the_values_that_were_packed) {
  const std::string folder = test::golden("quantised/" + GetParam());
  Checkpoint checkpoint = Checkpoint::open(folder);
  QuantReader reader(checkpoint, read_quant_scheme(checkpoint.config()));
  const json::value doc = parse_json_file(folder + "/case.json");
  for (const auto& [key, value] : doc.at("modules").as_object()) {
    const std::string module(key);
    ASSERT_TRUE(reader.has(module)) << module;
    const json::array& shape = value.at("shape").as_array();
    const QuantMatrix m = reader.read(module, shape[0].as_int64(), shape[1].as_int64());
    EXPECT_EQ(digest_of(m), std::string_view(value.at("sha256").as_string())) << module;
    EXPECT_EQ(static_cast<bool>(m.zero), reader.scheme().zeros) << module;
  }
  // What is left is plain, and nothing of it belongs to a quantised module.
  for (const std::string& name : checkpoint.unused()) {
    ASSERT_TRUE(name.ends_with(".weight")) << name;
    const std::string module = name.substr(0, name.size() - 7);
    EXPECT_FALSE(reader.has(module)) << name;
    EXPECT_FALSE(doc.at("modules").as_object().contains(module)) << name;
    checkpoint.tensor(name, checkpoint.find(name)->shape);
  }
}

INSTANTIATE_TEST_SUITE_P(Quantised, Golden, testing::ValuesIn(case_names()), [](const auto& p) {
  std::string name = p.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(Quantised, act_order_sorts_the_inputs_by_group) {
  Checkpoint checkpoint = Checkpoint::open(test::golden("quantised/gptq-int4-g32-act-order"));
  QuantReader reader(checkpoint, read_quant_scheme(checkpoint.config()));
  const std::string module = "model.layers.0.block_sparse_moe.experts.0.w2";
  const QuantMatrix m = reader.read(module, 64, 96);
  const Tensor g_idx = checkpoint.tensor(module + ".g_idx", {Dtype::i32}, {96});
  ASSERT_TRUE(m.order);
  EXPECT_EQ(m.scale.shape, (Shape{64, 3}));
  for (int32_t k = 0; k < 96; ++k) {
    EXPECT_EQ(g_idx.row<int32_t>(0)[m.order.row<int32_t>(0)[k]], k / 32) << k;
  }
}

TEST(Quantised, rows_are_dequantised_by_themselves) {
  Checkpoint checkpoint = Checkpoint::open(test::golden("quantised/awq-int4-g32"));
  QuantReader reader(checkpoint, read_quant_scheme(checkpoint.config()));
  const QuantMatrix m = reader.read("model.layers.1.self_attn.k_proj", 32, 64);
  std::vector<float> all(32 * 64);
  std::vector<float> some(2 * 64);
  dequantise(view(all.data(), Dtype::f32, {32, 64}), m, 0);
  dequantise(view(some.data(), Dtype::f32, {2, 64}), m, 30);
  EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + 30 * 64));
}

TEST(Unpack, a_last_word_may_be_part_full) {
  std::vector<uint32_t> words{0x87654321, 0xcba9};
  std::vector<uint8_t> values(12);
  unpack_rows(view(values.data(), Dtype::u8, {1, 12}), view(words.data(), Dtype::i32, {1, 2}), 4);
  EXPECT_THAT(values, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12));
  unpack_columns(view(values.data(), Dtype::u8, {12, 1}), view(words.data(), Dtype::i32, {2, 1}),
                 4);
  EXPECT_THAT(values, ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12));
  values.resize(6);
  unpack_rows(view(values.data(), Dtype::u8, {1, 6}), view(words.data(), Dtype::i32, {1, 2}), 8);
  EXPECT_THAT(values, ElementsAre(0x21, 0x43, 0x65, 0x87, 0xa9, 0xcb));
}

// One module "m" of 16 outputs and 64 inputs, of which a test breaks one tensor.
class Broken : public testing::Test {
 protected:
  void SetUp() override { words_.assign(64 * 64, 0x77777777); }

  Tensor add(const std::string& name, Dtype dtype, const Shape& shape) {
    std::vector<std::byte>& bytes = storage_[name];
    bytes.assign(static_cast<size_t>(shape.size() * size_of(dtype)), std::byte{0});
    return tensors_["m." + name] = view(bytes.data(), dtype, shape);
  }
  Tensor words(const std::string& name, const Shape& shape) {
    return tensors_["m." + name] = view(words_.data(), Dtype::i32, shape);
  }
  void make_gptq() {
    words("qweight", {8, 16});
    words("qzeros", {2, 2});
    add("scales", Dtype::f16, {2, 16});
    const Tensor g_idx = add("g_idx", Dtype::i32, {64});
    for (int32_t k = 0; k < 64; ++k) g_idx.row<int32_t>(0)[k] = k / 32;
  }
  std::string refusal(const std::string& quantization) {
    write_file(folder_ / "config.json", R"({"quantization_config":)" + quantization + "}");
    write_safetensors(folder_ / "model.safetensors", tensors_);
    Checkpoint checkpoint = Checkpoint::open(folder_.path());
    QuantReader reader(checkpoint, read_quant_scheme(checkpoint.config()));
    if (!reader.has("m")) return "not quantised";
    return test::message_of([&] { reader.read("m", 16, 64); });
  }

  static constexpr const char* kGptq =
      R"({"quant_method":"gptq","bits":4,"group_size":32,"desc_act":true,"sym":true})";
  static constexpr const char* kPacked =
      R"({"quant_method":"compressed-tensors","format":"pack-quantized","config_groups":
          {"a":{"weights":{"num_bits":4,"group_size":32}}}})";
  static constexpr const char* kFp8 = R"({"quant_method":"fp8"})";
  std::vector<uint32_t> words_;
  std::map<std::string, std::vector<std::byte>> storage_;
  std::map<std::string, Tensor> tensors_;
  test::Folder folder_;
};

TEST_F(Broken, a_good_one_is_read) {
  make_gptq();
  EXPECT_EQ(refusal(kGptq), "no error");
}

TEST_F(Broken, a_tensor_that_is_missing_or_has_another_shape_or_type) {
  make_gptq();
  for (const char* name : {"m.qzeros", "m.scales", "m.g_idx"}) {
    const auto node = tensors_.extract(name);
    EXPECT_THAT(refusal(kGptq), AllOf(HasSubstr(name), HasSubstr("missing")));
    tensors_[name] = node.mapped();
  }
  words("qweight", {16, 16});  // 8 bits
  EXPECT_THAT(refusal(kGptq), AllOf(HasSubstr("m.qweight"), HasSubstr("expected shape [8, 16]"),
                                    HasSubstr("found [16, 16]")));
  make_gptq();
  add("scales", Dtype::i8, {2, 16});
  EXPECT_THAT(refusal(kGptq), AllOf(HasSubstr("m.scales"), HasSubstr("found I8")));
}

TEST_F(Broken, groups_of_inputs_out_of_range_too_full_or_without_act_order) {
  make_gptq();
  auto* g_idx = tensors_["m.g_idx"].row<int32_t>(0);
  for (const int32_t group : {-1, 2, std::numeric_limits<int32_t>::max()}) {
    g_idx[5] = group;
    EXPECT_THAT(refusal(kGptq),
                AllOf(HasSubstr("m.g_idx"), HasSubstr("input 5"), HasSubstr("0 to 1")));
  }
  g_idx[5] = 1;
  EXPECT_THAT(refusal(kGptq), HasSubstr("more inputs than the 32"));
  g_idx[40] = 0;
  EXPECT_EQ(refusal(kGptq), "no error");
  EXPECT_THAT(refusal(R"({"quant_method":"gptq","bits":4,"group_size":32,"desc_act":false})"),
              HasSubstr("desc_act"));
}

TEST_F(Broken, zero_points_of_a_symmetric_one) {
  make_gptq();
  std::vector<uint32_t> other{0x77777777, 0x77777767, 0x77777777, 0x77777777};
  tensors_["m.qzeros"] = view(other.data(), Dtype::i32, {2, 2});
  EXPECT_THAT(refusal(kGptq), AllOf(HasSubstr("m.qzeros"), HasSubstr("symmetric")));
}

TEST_F(Broken, scales_that_are_not_finite) {
  make_gptq();
  tensors_["m.scales"].row<uint16_t>(1)[3] = 0x7c00;
  EXPECT_THAT(refusal(kGptq), AllOf(HasSubstr("m.scales"), HasSubstr("output 3, group 1 is inf")));
}

TEST_F(Broken, a_bias_must_be_zero) {
  make_gptq();
  const Tensor bias = add("bias", Dtype::f16, {16});
  EXPECT_EQ(refusal(kGptq), "no error");
  bias.row<uint16_t>(0)[2] = 0x3c00;
  EXPECT_THAT(refusal(kGptq), AllOf(HasSubstr("m.bias"), HasSubstr("bias")));
}

TEST_F(Broken, packed_with_another_shape) {
  words("weight_packed", {16, 8});
  add("weight_scale", Dtype::bf16, {16, 2});
  const Tensor shape = add("weight_shape", Dtype::i64, {2});
  shape.row<int64_t>(0)[0] = 16;
  shape.row<int64_t>(0)[1] = 60;
  EXPECT_THAT(refusal(kPacked), AllOf(HasSubstr("m.weight_shape"), HasSubstr("found [16, 60]")));
  shape.row<int64_t>(0)[1] = 64;
  EXPECT_EQ(refusal(kPacked), "no error");
  add("weight_zero_point", Dtype::i8, {16, 2}).row<int8_t>(0)[0] = 3;
  EXPECT_THAT(refusal(kPacked), AllOf(HasSubstr("m.weight_zero_point"), HasSubstr("symmetric")));
}

TEST_F(Broken, zero_points_beside_packed_weights_may_be_plain) {
  words("weight_packed", {16, 8});
  add("weight_scale", Dtype::f32, {16, 2}).row<float>(2)[1] = 0.5F;
  add("weight_zero_point", Dtype::i8, {16, 2}).row<int8_t>(2)[1] = -8;
  EXPECT_EQ(refusal(R"({"quant_method":"compressed-tensors","format":"pack-quantized",
      "config_groups":{"a":{"weights":{"num_bits":4,"group_size":32,"symmetric":false}}}})"),
            "no error");
  Checkpoint checkpoint = Checkpoint::open(folder_.path());
  QuantReader reader(checkpoint, read_quant_scheme(checkpoint.config()));
  const QuantMatrix m = reader.read("m", 16, 64);
  EXPECT_EQ(m.zero.row<uint8_t>(2)[0], 8);
  EXPECT_EQ(m.zero.row<uint8_t>(2)[1], 0);
  std::vector<float> row(64);
  dequantise(view(row.data(), Dtype::f32, {1, 64}), m, 2);
  EXPECT_EQ(row[31], 0.0F);
  EXPECT_EQ(row[32], 3.5F);
}

TEST_F(Broken, fp8_scales_are_one_or_one_for_each_output) {
  add("weight", Dtype::f8e4m3, {16, 64});
  EXPECT_THAT(refusal(kFp8), AllOf(HasSubstr("m.weight_scale"), HasSubstr("missing")));
  for (const Shape& shape : {Shape{}, Shape{1}, Shape{1, 1}, Shape{16}, Shape{16, 1}}) {
    add("weight_scale", Dtype::f32, shape);
    EXPECT_EQ(refusal(kFp8), "no error") << to_string(shape);
  }
  for (const Shape& shape : {Shape{8}, Shape{16, 2}, Shape{1, 16}, Shape{1, 1, 1}}) {
    add("weight_scale", Dtype::f32, shape);
    EXPECT_THAT(refusal(kFp8), HasSubstr("expected shape [16")) << to_string(shape);
  }
  add("weight", Dtype::i8, {16, 64});
  EXPECT_THAT(refusal(kFp8), AllOf(HasSubstr("F8_E4M3"), HasSubstr("found I8")));
  add("weight", Dtype::bf16, {16, 64});
  EXPECT_EQ(refusal(kFp8), "not quantised");
}

TEST_F(Broken, integers_beyond_the_bits_of_the_config) {
  add("weight", Dtype::i8, {16, 64}).row<int8_t>(3)[1] = 8;
  add("weight_scale", Dtype::f32, {16, 1});
  EXPECT_THAT(refusal(R"({"quant_method":"compressed-tensors","format":"int-quantized",
                          "config_groups":{"a":{"weights":{"num_bits":4}}}})"),
              AllOf(HasSubstr("m.weight"), HasSubstr("value 8"), HasSubstr("4 bits")));
}

}  // namespace
}  // namespace lorry
