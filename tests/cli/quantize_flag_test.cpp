#include "cli/quantize_flag.h"

#include <gtest/gtest.h>

#include "lorry/error.h"

namespace lorry::test {
namespace {

using Kind = WeightFormat::Kind;

TEST(QuantizeFlag, names_of_ours) {
  std::string note;
  EXPECT_EQ(parse_quantize({"", false}, note).linears, WeightFormat{});
  EXPECT_EQ(parse_quantize({"int8", false}, note).linears, (WeightFormat{Kind::int8, 0, false}));
  EXPECT_EQ(parse_quantize({"INT4", false}, note).linears, (WeightFormat{Kind::int4, 128, false}));
  EXPECT_EQ(parse_quantize({"int4-32", false}, note).linears,
            (WeightFormat{Kind::int4, 32, false}));
  EXPECT_EQ(parse_quantize({"fp8", false}, note).linears, (WeightFormat{Kind::fp8, 0, false}));
  EXPECT_EQ(note, "");
}

TEST(QuantizeFlag, the_head_stays_as_it_is_unless_it_is_named) {
  std::string note;
  EXPECT_EQ(parse_quantize({"int8", false}, note).head, WeightFormat{});
  EXPECT_EQ(parse_quantize({"int8", true}, note).head.kind, Kind::int8);
  EXPECT_THROW(parse_quantize({"", true}, note), Error);
}

TEST(QuantizeFlag, names_of_lorax_are_the_nearest_of_ours) {
  for (const auto& [name, kind, ours] : {std::tuple{"eetq", Kind::int8, "int8"},
                                         {"bitsandbytes", Kind::int8, "int8"},
                                         {"bitsandbytes-nf4", Kind::int4, "int4"},
                                         {"bitsandbytes-fp4", Kind::int4, "int4"},
                                         {"hqq-4bit", Kind::int4, "int4"}}) {
    std::string note;
    EXPECT_EQ(parse_quantize({name, false}, note).linears.kind, kind);
    EXPECT_EQ(note, std::string("--quantize ") + name + ": stored as " + ours);
  }
  std::string note;
  EXPECT_TRUE(parse_quantize({"gptq", false}, note).linears.plain());
  EXPECT_EQ(note, "--quantize gptq: a checkpoint says itself how it is quantised");
}

TEST(QuantizeFlag, other_names_are_refused_with_those_there_are) {
  std::string note;
  for (const auto& [name, text] :
       {std::pair{"int3", "int8, int4, int4-32, fp8"}, {"hqq-2bit", "not offered: use int4"}}) {
    try {
      parse_quantize({name, false}, note);
      FAIL() << name;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  }
}

TEST(KvDtypeFlag, auto_bf16_and_fp16_are_the_type_that_is_computed_in) {
  for (const char* name : {"", "auto", "bf16", "BFloat16"}) {
    EXPECT_EQ(parse_kv_format(name, Dtype::bf16), KvFormat::act) << name;
  }
  for (const char* name : {"auto", "fp16", "Float16"}) {
    EXPECT_EQ(parse_kv_format(name, Dtype::f16), KvFormat::act) << name;
  }
  EXPECT_EQ(parse_kv_format("auto", Dtype::f32), KvFormat::act);
  EXPECT_EQ(parse_kv_format("int8", Dtype::bf16), KvFormat::int8);
  EXPECT_EQ(parse_kv_format("INT8", Dtype::f32), KvFormat::int8);
}

TEST(KvDtypeFlag, other_names_and_types_that_are_not_computed_in_are_refused) {
  for (const auto& [name, act, text] :
       {std::tuple{"fp8_e4m3", Dtype::bf16, "\"fp8_e4m3\": expected auto, bf16, fp16 or int8"},
        {"bf16", Dtype::f32, "expected auto (keys and values in float32) or int8"},
        {"bf16", Dtype::f16, "expected auto (keys and values in float16) or int8"},
        {"fp16", Dtype::bf16, "expected auto (keys and values in bfloat16) or int8"}}) {
    try {
      parse_kv_format(name, act);
      FAIL() << name;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  }
}

}  // namespace
}  // namespace lorry::test
