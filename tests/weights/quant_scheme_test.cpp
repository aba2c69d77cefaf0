#include "weights/quant_scheme.h"

#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "weights/files.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using Kind = QuantScheme::Kind;

QuantScheme scheme(const std::string& quantization) {
  return read_quant_scheme(
      Config::parse(R"({"quantization_config":)" + quantization + "}", "config.json"));
}

// The message of a refusal that is of this code.
std::string refusal(const std::string& quantization, Code code = Code::unsupported) {
  try {
    scheme(quantization);
  } catch (const Error& e) {
    return e.code() == code ? e.what() : std::string("another code: ") + e.what();
  }
  return "no error";
}

std::string compressed(const std::string& weights, const std::string& format = "pack-quantized",
                       const std::string& more = "") {
  return R"({"quant_method":"compressed-tensors","format":")" + format +
         R"(","config_groups":{"group_0":{"targets":["Linear"],"weights":)" + weights + "}" + more +
         "}}";
}

TEST(QuantScheme, a_plain_checkpoint_has_none) {
  const QuantScheme s = read_quant_scheme(Config::parse("{}", "config.json"));
  EXPECT_EQ(s.kind, Kind::none);
  EXPECT_THAT(s.method, IsEmpty());
}

TEST(QuantScheme, gptq) {
  const QuantScheme s = scheme(
      R"({"quant_method":"gptq","bits":4,"group_size":128,"desc_act":true,"sym":false,
          "checkpoint_format":"gptq_v2","dynamic":{"-:lm_head":{},"-:.*gate":null}})");
  EXPECT_EQ(s.method, "gptq, int4, groups of 128, zero points, act-order");
  EXPECT_FALSE(s.zeros_less_one);
  EXPECT_EQ(s.n_scales(4096), 32);
  EXPECT_EQ(s.n_scales(129), 2);
  const QuantScheme whole =
      scheme(R"({"quant_method":"gptq","bits":8,"group_size":-1,"desc_act":false})");
  EXPECT_EQ(whole.method, "gptq, int8");
  EXPECT_TRUE(whole.zeros_less_one);
  EXPECT_EQ(whole.n_scales(4096), 1);
}

TEST(QuantScheme, the_file_beside_is_read_when_the_config_says_nothing) {
  test::Folder folder;
  const std::string path = folder / "config.json";
  write_file(folder / "quantize_config.json", R"({"bits":4,"group_size":64,"desc_act":false})");
  EXPECT_EQ(read_quant_scheme(Config::parse("{}", path)).method, "gptq, int4, groups of 64");
  EXPECT_EQ(
      read_quant_scheme(Config::parse(R"({"quantization_config":{"quant_method":"fp8"}})", path))
          .method,
      "fp8, fp8");
}

TEST(QuantScheme, compression_config_is_an_older_name) {
  EXPECT_EQ(
      read_quant_scheme(Config::parse(R"({"compression_config":)" +
                                          compressed(R"({"num_bits":4,"group_size":32})") + "}",
                                      "config.json"))
          .method,
      "compressed-tensors, int4, groups of 32");
}

TEST(QuantScheme, compressed_tensors_strategies) {
  EXPECT_EQ(scheme(compressed(R"({"num_bits":8,"strategy":"channel","symmetric":false})")).method,
            "compressed-tensors, int8, zero points");
  EXPECT_EQ(scheme(compressed(R"({"num_bits":8,"type":"float","strategy":"block",
                                  "block_structure":[128,64]})",
                              "float-quantized"))
                .method,
            "compressed-tensors, fp8, blocks of 128x64");
  EXPECT_EQ(scheme(compressed(R"({"num_bits":4,"strategy":"group","group_size":128,
                                  "actorder":"group"})"))
                .method,
            "compressed-tensors, int4, groups of 128, act-order");
  EXPECT_EQ(scheme(compressed(R"({"num_bits":4,"strategy":"group","group_size":128,
                                  "actorder":"weight"})"))
                .method,
            "compressed-tensors, int4, groups of 128");
}

TEST(QuantScheme, what_is_not_used_is_said) {
  const QuantScheme s =
      scheme(R"({"quant_method":"fp8","activation_scheme":"static","kv_cache_scheme":"static"})");
  EXPECT_THAT(s.ignored, testing::ElementsAre(HasSubstr("input_scale"), HasSubstr("kv_cache")));
  const QuantScheme kv =
      scheme(R"({"quant_method":"compressed-tensors","config_groups":{},"kv_cache_scheme":{}})");
  EXPECT_EQ(kv.kind, Kind::none);
  EXPECT_EQ(kv.method, "compressed-tensors, no quantised weights");
  EXPECT_THAT(kv.ignored, testing::ElementsAre(HasSubstr("kv_cache")));
}

TEST(QuantScheme, methods_that_are_not_read_say_what_to_do) {
  for (const char* q :
       {R"({"quant_method":"bitsandbytes","load_in_4bit":true})", R"({"load_in_8bit":true})"}) {
    EXPECT_THAT(refusal(q), AllOf(HasSubstr("bitsandbytes"), HasSubstr("--quantize"))) << q;
  }
  for (const std::string method : {"aqlm", "quark", "hqq", "eetq", "mxfp4", "auto-round"}) {
    EXPECT_THAT(refusal(R"({"quant_method":")" + method + "\"}"),
                AllOf(HasSubstr("config.json"), HasSubstr(method), HasSubstr("--quantize")));
  }
}

TEST(QuantScheme, widths_groups_and_packings_that_are_not_read) {
  const std::string gptq = R"({"quant_method":"gptq",)";
  for (const char* bits : {"2", "3", "5"}) {
    EXPECT_THAT(refusal(gptq + R"("group_size":128,"bits":)" + bits + "}"),
                HasSubstr("4 and 8 bits"));
  }
  for (const char* group : {"16", "0", "100"}) {
    EXPECT_THAT(refusal(gptq + R"("bits":4,"group_size":)" + group + "}"),
                HasSubstr("multiple of 32"));
  }
  const std::string good = gptq + R"("bits":4,"group_size":128,)";
  EXPECT_THAT(refusal(good + R"("checkpoint_format":"marlin"})"), HasSubstr("marlin"));
  EXPECT_THAT(refusal(good + R"("is_marlin_format":true})"), HasSubstr("marlin"));
  EXPECT_THAT(refusal(good + R"("format":"gptq_p"})"), HasSubstr("gptq_p"));
  EXPECT_THAT(refusal(good + R"("pack_dtype":"int16"})"), HasSubstr("pack_dtype"));
  EXPECT_THAT(refusal(good + R"("dynamic":{"+:.*w2":{"bits":8}}})"), HasSubstr("+:.*w2"));
  const std::string awq = R"({"quant_method":"awq","group_size":128,)";
  EXPECT_THAT(refusal(awq + R"("bits":4,"version":"GEMV"})"), HasSubstr("gemm"));
  EXPECT_THAT(refusal(awq + R"("bits":4,"backend":"llm-awq"})"), HasSubstr("llm-awq"));
  EXPECT_THAT(refusal(awq + R"("bits":4,"zero_point":false})"), HasSubstr("zero points"));
  EXPECT_THAT(refusal(awq + R"("bits":8})"), HasSubstr("4 bits"));
}

TEST(QuantScheme, compressed_tensors_that_are_not_read) {
  EXPECT_THAT(refusal(compressed(R"({"num_bits":4,"type":"float"})", "nvfp4-pack-quantized")),
              HasSubstr("nvfp4"));
  EXPECT_THAT(refusal(compressed(R"({"num_bits":4,"type":"float"})", "float-quantized")),
              HasSubstr("num_bits"));
  EXPECT_THAT(refusal(compressed(R"({"num_bits":6})")), HasSubstr("4 and 8 bits"));
  EXPECT_THAT(refusal(compressed(R"({"num_bits":4,"strategy":"tensor_group"})")),
              HasSubstr("tensor_group"));
  EXPECT_THAT(refusal(compressed(R"({"num_bits":4,"group_size":32})", "pack-quantized",
                                 R"(,"group_1":{"weights":{"num_bits":8}})")),
              HasSubstr("mix schemes"));
  EXPECT_THAT(refusal(R"({"quant_method":"compressed-tensors",
                          "transform_config":{"config_groups":{"R1":{}}}})"),
              HasSubstr("rotates"));
  EXPECT_THAT(refusal(R"({"sparsity_config":{"format":"sparse-24-bitmask"}})"),
              HasSubstr("sparse"));
}

TEST(QuantScheme, values_that_are_not_valid) {
  for (const char* q :
       {"7", "[]", R"({"quant_method":7})", R"({"quant_method":"gptq"})",
        R"({"quant_method":"gptq","bits":"4","group_size":32})",
        R"({"quant_method":"gptq","bits":4,"group_size":1e30})",
        R"({"quant_method":"gptq","bits":4,"group_size":32,"dynamic":[]})",
        R"({"quant_method":"fp8","weight_block_size":[128]})",
        R"({"quant_method":"fp8","weight_block_size":[0,128]})", R"({"config_groups":{"a":3}})",
        R"({"config_groups":{"a":{"weights":{}}}})"}) {
    EXPECT_THAT(refusal(q, Code::bad_file), HasSubstr("config.json: ")) << q;
  }
}

}  // namespace
}  // namespace lorry
