#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "weights/files.h"
#include "weights/safetensors.h"

namespace lorry {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

class Safetensors : public testing::Test {
 protected:
  // Writes the bytes and opens them, both ways; the message of the refusal must be the same.
  std::string refusal(const std::string& bytes) {
    const std::string path = folder_ / "x.safetensors";
    write_file(path, bytes);
    const auto open = [&](Access access) {
      return test::message_of([&] { SafetensorsFile::open(path, access); });
    };
    const std::string message = open(Access::mapped);
    EXPECT_EQ(message, open(Access::read));
    if (message != "no error") {
      EXPECT_THAT(message, HasSubstr(path));
    }
    return message;
  }
  std::string refusal(const std::string& header, size_t data_bytes) {
    return refusal(test::raw_safetensors(header, std::string(data_bytes, '\0')));
  }

  test::Folder folder_;
};

TEST_F(Safetensors, E1_fewer_than_8_bytes) {
  for (size_t n = 0; n < 8; ++n) {
    EXPECT_THAT(refusal(std::string(n, '\0')), HasSubstr("header too small"));
  }
}

TEST_F(Safetensors, E2_header_length_beyond_the_limit_or_the_file) {
  const std::string all_ones(8, '\xff');
  EXPECT_THAT(refusal(all_ones + "{}"), HasSubstr("header too large"));
  const auto with_length = [](uint64_t n) {
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &n, 8);
    return bytes + "{}";
  };
  EXPECT_THAT(refusal(with_length(100'000'001)), HasSubstr("header too large"));
  EXPECT_THAT(refusal(with_length(100'000'000)), HasSubstr("invalid header length"));
  EXPECT_THAT(refusal(with_length(3)), HasSubstr("invalid header length"));
  EXPECT_EQ(refusal(with_length(2)), "no error");
  EXPECT_THAT(refusal(with_length(0)), HasSubstr("does not start with '{'"));
}

TEST_F(Safetensors, E3_header_that_is_not_one_json_object) {
  EXPECT_THAT(refusal("{\"\xff\":1}", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("{\"a\":", 0), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal("[]", 0), HasSubstr("does not start with '{'"));
  EXPECT_THAT(refusal(" {}", 0), HasSubstr("does not start with '{'"));
  EXPECT_THAT(refusal("{}x", 0), HasSubstr("bytes after"));
  EXPECT_THAT(refusal("{}\n", 0), HasSubstr("bytes after"));
  EXPECT_THAT(refusal(std::string("{}\0", 3), 0), HasSubstr("bytes after"));
  EXPECT_EQ(refusal("{}     ", 0), "no error");
}

TEST_F(Safetensors, E3_json_of_another_form) {
  EXPECT_THAT(refusal(R"({"a":1})", 0), HasSubstr("\"a\""));
  EXPECT_THAT(refusal(R"({"a":[]})", 0), HasSubstr("array"));
  EXPECT_THAT(refusal(R"({"a":{}})", 0), HasSubstr("needs dtype"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","shape":[]}})", 1), HasSubstr("needs dtype"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","dtype":"U8"}})", 0), HasSubstr("repeated"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":1}})", 1),
              HasSubstr("unknown key \"x\""));
  EXPECT_THAT(refusal(R"({"a":{"dtype":3}})", 0), HasSubstr("\"dtype\""));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}})", 1),
              HasSubstr("\"shape\""));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", 1),
              HasSubstr("too deep"));
  EXPECT_THAT(refusal(R"({"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}})", 1),
              HasSubstr("boolean"));
}

TEST_F(Safetensors, E4_duplicate_tensor_name) {
  EXPECT_THAT(refusal("{" + test::entry("a", "U8", "[1]", 0, 1) + "," +
                          test::entry("b", "U8", "[1]", 1, 2) + "," +
                          test::entry("a", "U8", "[1]", 2, 3) + "}",
                      3),
              AllOf(HasSubstr("\"a\""), HasSubstr("twice")));
}

TEST_F(Safetensors, E4_duplicate_name_written_with_an_escape) {
  EXPECT_THAT(refusal("{" + test::entry("ab", "U8", "[1]", 0, 1) + "," +
                          test::entry("\\u0061b", "U8", "[1]", 1, 2) + "}",
                      2),
              AllOf(HasSubstr("\"ab\""), HasSubstr("twice")));
}

TEST_F(Safetensors, E5_offsets_negative_reversed_or_not_two) {
  EXPECT_THAT(refusal("{" + test::entry("a", "U8", "[1]", -1, 0) + "}", 1), HasSubstr("\"a\""));
  EXPECT_THAT(refusal("{" + test::entry("a", "U8", "[1]", 2, 1) + "}", 2), HasSubstr("[2, 1]"));
  for (const char* offsets :
       {"[]", "[0]", "[0,1,2]", "[0,1.0]", "[0,18446744073709551615]", "[0,\"1\"]", "[0,null]"}) {
    EXPECT_NE(
        refusal(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":)" + std::string(offsets) + "}}",
                1),
        "no error")
        << offsets;
  }
}

TEST_F(Safetensors, E5_beyond_the_file) {
  EXPECT_THAT(refusal("{" + test::entry("a", "U8", "[4]", 0, 4) + "}", 3),
              AllOf(HasSubstr("\"a\""), HasSubstr("truncated")));
}

TEST_F(Safetensors, E5_overlap) {
  EXPECT_THAT(refusal("{" + test::entry("a", "U8", "[2]", 0, 2) + "," +
                          test::entry("b", "U8", "[2]", 1, 3) + "}",
                      3),
              AllOf(HasSubstr("\"b\""), HasSubstr("overlaps")));
}

TEST_F(Safetensors, E5_hole) {
  EXPECT_THAT(refusal("{" + test::entry("a", "U8", "[1]", 0, 1) + "," +
                          test::entry("b", "U8", "[1]", 2, 3) + "}",
                      3),
              AllOf(HasSubstr("\"b\""), HasSubstr("hole")));
  EXPECT_THAT(refusal("{" + test::entry("a", "U8", "[1]", 1, 2) + "}", 2), HasSubstr("hole"));
}

TEST_F(Safetensors, E5_bytes_after_the_last_tensor) {
  EXPECT_THAT(refusal("{" + test::entry("a", "U8", "[1]", 0, 1) + "}", 2),
              HasSubstr("end at byte 1"));
  EXPECT_THAT(refusal("{}", 1), HasSubstr("end at byte 0"));
}

TEST_F(Safetensors, E5_the_order_in_the_header_is_free) {
  EXPECT_EQ(refusal("{" + test::entry("b", "U8", "[1]", 1, 2) + "," +
                        test::entry("a", "U8", "[1]", 0, 1) + "}",
                    2),
            "no error");
}

TEST_F(Safetensors, E6_shape_product_overflows) {
  for (const char* shape : {"[4294967296,4294967296]", "[9223372036854775807,2]",
                            "[4611686018427387904]", "[9223372036854775807,2,0]"}) {
    EXPECT_THAT(refusal("{" + test::entry("big", "F32", shape, 0, 4) + "}", 4),
                AllOf(HasSubstr("\"big\""), HasSubstr("overflows")));
  }
  EXPECT_THAT(refusal("{" + test::entry("big", "F32", "[9223372036854775808]", 0, 4) + "}", 4),
              HasSubstr("\"big\""));
  EXPECT_THAT(refusal("{" + test::entry("big", "F32", "[-1]", 0, 4) + "}", 4),
              HasSubstr("negative"));
}

TEST_F(Safetensors, E6_shape_and_type_disagree_with_the_range) {
  EXPECT_THAT(
      refusal("{" + test::entry("a", "F32", "[2]", 0, 4) + "}", 4),
      AllOf(HasSubstr("\"a\""), HasSubstr("2 elements of F32 take 8 bytes"), HasSubstr("[0, 4]")));
  EXPECT_NE(refusal("{" + test::entry("a", "F32", "[1]", 0, 8) + "}", 8), "no error");
}

TEST_F(Safetensors, E7_zero_size_and_rank_0_are_accepted) {
  const std::string path = folder_ / "x.safetensors";
  write_file(path, test::raw_safetensors("{" + test::entry("empty", "F32", "[3,0]", 0, 0) + "," +
                                             test::entry("scalar", "F32", "[]", 0, 4) + "}",
                                         std::string("\0\0\x80\x3f", 4)));
  for (const Access access : {Access::mapped, Access::read}) {
    const SafetensorsFile file = SafetensorsFile::open(path, access);
    const Tensor empty = file.tensor("empty");
    EXPECT_TRUE(empty);
    EXPECT_EQ(empty.shape, (Shape{3, 0}));
    EXPECT_EQ(empty.rows() * empty.cols(), 0);
    const Tensor scalar = file.tensor("scalar");
    EXPECT_EQ(scalar.shape, Shape{});
    EXPECT_EQ(scalar.row<float>(0)[0], 1.0F);
  }
}

TEST_F(Safetensors, E8_unknown_dtype) {
  EXPECT_THAT(refusal("{" + test::entry("a", "F128", "[1]", 0, 16) + "}", 16),
              AllOf(HasSubstr("\"a\""), HasSubstr("\"F128\"")));
  EXPECT_THAT(refusal("{" + test::entry("a", "f32", "[1]", 0, 4) + "}", 4), HasSubstr("\"f32\""));
}

TEST_F(Safetensors, E8_sub_byte_types_must_fill_bytes) {
  EXPECT_THAT(refusal("{" + test::entry("a", "F4", "[3]", 0, 2) + "}", 2),
              AllOf(HasSubstr("\"a\""), HasSubstr("whole bytes")));
  EXPECT_EQ(refusal("{" + test::entry("a", "F4", "[4]", 0, 2) + "}", 2), "no error");
  EXPECT_EQ(refusal("{" + test::entry("a", "F6_E2M3", "[4]", 0, 3) + "}", 3), "no error");
}

TEST_F(Safetensors, E8_a_type_that_is_not_computed_with_is_refused_when_asked_for) {
  const std::string path = folder_ / "x.safetensors";
  write_file(path, test::raw_safetensors("{" + test::entry("d", "F64", "[1]", 0, 8) + "," +
                                             test::entry("u", "U8", "[2]", 8, 10) + "}",
                                         std::string(10, '\7')));
  const SafetensorsFile file = SafetensorsFile::open(path, Access::mapped);
  EXPECT_EQ(file.tensor("u").row<uint8_t>(0)[1], 7);
  EXPECT_THAT(test::message_of([&] { file.tensor("d"); }),
              AllOf(HasSubstr(path), HasSubstr("\"d\""), HasSubstr("F64")));
}

TEST_F(Safetensors, E8_more_than_4_dimensions_are_refused_when_asked_for) {
  const std::string path = folder_ / "x.safetensors";
  write_file(path, test::raw_safetensors("{" + test::entry("r5", "U8", "[1,1,1,2,1]", 0, 2) + "," +
                                             test::entry("r4", "U8", "[1,2,1,1]", 2, 4) + "}",
                                         std::string(4, '\7')));
  const SafetensorsFile file = SafetensorsFile::open(path, Access::mapped);
  EXPECT_EQ(file.tensor("r4").shape, (Shape{1, 2, 1, 1}));
  EXPECT_THAT(test::message_of([&] { file.tensor("r5"); }),
              AllOf(HasSubstr("\"r5\""), HasSubstr("5 dimensions")));
}

TEST_F(Safetensors, E9_metadata_must_be_strings) {
  for (const char* value : {"1", "null", "true", "1.5"}) {
    EXPECT_THAT(refusal(R"({"__metadata__":{"k":)" + std::string(value) + "}}", 0),
                AllOf(HasSubstr("__metadata__"), HasSubstr("\"k\"")));
  }
  EXPECT_NE(refusal(R"({"__metadata__":{"k":{}}})", 0), "no error");
  EXPECT_NE(refusal(R"({"__metadata__":{"k":[]}})", 0), "no error");
  EXPECT_NE(refusal(R"({"__metadata__":"x"})", 0), "no error");
  EXPECT_THAT(refusal(R"({"__metadata__":{"k":"1","k":"2"}})", 0), HasSubstr("twice"));
  EXPECT_THAT(refusal(R"({"__metadata__":{},"__metadata__":{}})", 0), HasSubstr("twice"));
  EXPECT_EQ(refusal(R"({"__metadata__":{"k":"v\u0041"}})", 0), "no error");
}

// As many tensors as a header of the largest size holds, all on one range.
TEST_F(Safetensors, E10_millions_of_tensors_on_one_range_take_bounded_memory) {
  std::string header = "{";
  for (int i = 0; header.size() < 99'900'000; ++i) {
    if (i != 0) header += ',';
    header += test::entry(std::to_string(i), "U8", "[1]", 0, 1);
  }
  header += "}";
  const std::string path = folder_ / "x.safetensors";
  write_file(path, test::raw_safetensors(header, "x"));
  header = std::string();
  struct rusage before{};
  getrusage(RUSAGE_SELF, &before);
  EXPECT_THAT(test::message_of([&] { SafetensorsFile::open(path, Access::read); }),
              HasSubstr("overlaps"));
  struct rusage after{};
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 1'000'000) << "KiB";
}

TEST_F(Safetensors, E11_git_lfs_pointer) {
  EXPECT_THAT(refusal("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4900\n"),
              AllOf(HasSubstr("Git LFS pointer"), HasSubstr("git lfs pull")));
}

TEST_F(Safetensors, E14_nan_and_infinity_are_loaded) {
  const std::string path = folder_ / "x.safetensors";
  std::vector<float> values{std::numeric_limits<float>::quiet_NaN(),
                            -std::numeric_limits<float>::infinity()};
  write_safetensors(path, {{"a", view(values.data(), Dtype::f32, {2})}});
  const SafetensorsFile file = SafetensorsFile::open(path, Access::read);
  EXPECT_TRUE(std::isnan(file.tensor("a").row<float>(0)[0]));
  EXPECT_EQ(file.tensor("a").row<float>(0)[1], -std::numeric_limits<float>::infinity());
}

TEST_F(Safetensors, E15_read_tensors_are_not_those_of_the_file) {
  const std::string path = folder_ / "x.safetensors";
  std::vector<float> values{1, 2, 3, 4};
  write_safetensors(path, {{"a", view(values.data(), Dtype::f32, {2, 2})}});
  const SafetensorsFile file = SafetensorsFile::open(path, Access::read);
  std::filesystem::resize_file(path, 8);  // a mapped page would now be a bus error
  EXPECT_EQ(file.tensor("a").row<float>(1)[1], 4.0F);
}

TEST_F(Safetensors, E15_a_size_limit_is_checked_before_reading) {
  const std::string path = folder_ / "x.safetensors";
  write_file(path, "");
  std::filesystem::resize_file(path, int64_t{1} << 40);  // sparse
  EXPECT_THAT(
      test::message_of([&] { SafetensorsFile::open(path, Access::read, int64_t{1} << 30); }),
      AllOf(HasSubstr("1099511627776 bytes"), HasSubstr("1073741824")));
}

TEST_F(Safetensors, E16_other_formats_by_name) {
  for (const char* name : {"a.bin", "a.pt", "a.pth", "a.ckpt"}) {
    const std::string path = folder_ / name;
    write_file(path, std::string(64, 'x'));
    EXPECT_THAT(test::message_of([&] { SafetensorsFile::open(path, Access::mapped); }),
                AllOf(HasSubstr("pickle"), HasSubstr("torch.load")));
  }
  const std::string path = folder_ / "a.gguf";
  write_file(path, std::string(64, 'x'));
  EXPECT_THAT(test::message_of([&] { SafetensorsFile::open(path, Access::mapped); }),
              AllOf(HasSubstr("GGUF"), HasSubstr("save_pretrained")));
}

TEST_F(Safetensors, E16_other_formats_by_content) {
  EXPECT_THAT(refusal("GGUF" + std::string(60, '\0')), HasSubstr("GGUF"));
  EXPECT_THAT(refusal("PK\x03\x04" + std::string(60, '\0')), HasSubstr("pickle"));
  EXPECT_THAT(refusal("\x80\x02}q" + std::string(60, '\0')), HasSubstr("pickle"));
}

TEST_F(Safetensors, E16_a_header_whose_length_looks_like_a_pickle_is_accepted) {
  EXPECT_EQ(refusal("{}" + std::string(0x280 - 2, ' '), 0), "no error");
}

TEST_F(Safetensors, a_pipe_or_a_folder_is_refused_without_waiting) {
  const std::string pipe = folder_ / "pipe.safetensors";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(test::message_of([&] { SafetensorsFile::open(pipe, Access::read); }),
              HasSubstr("not a regular file"));
  EXPECT_THAT(test::message_of([&] { SafetensorsFile::open(folder_.path(), Access::read); }),
              HasSubstr("not a regular file"));
  EXPECT_THAT(test::message_of([&] { SafetensorsFile::open(folder_ / "absent", Access::read); }),
              HasSubstr("No such file"));
}

TEST_F(Safetensors, a_hostile_name_does_not_reach_a_message_raw) {
  const std::string message =
      refusal("{" + test::entry("a\\n" + std::string(5000, 'b'), "F32", "[2]", 0, 4) + "}", 4);
  EXPECT_THAT(message, AllOf(HasSubstr("\"a\\x0abb"), Not(HasSubstr("\n"))));
  EXPECT_LT(message.size(), 1000U);
}

// Every prefix of a good file is refused, none crashes.
TEST_F(Safetensors, every_truncation_is_refused) {
  const std::string whole =
      test::raw_safetensors("{" + test::entry("a", "F32", "[2]", 0, 8) + "," +
                                test::entry("b", "BF16", "[1]", 8, 10) + R"(,"__metadata__":{}})",
                            std::string(10, '\1'));
  ASSERT_EQ(refusal(whole), "no error");
  for (size_t n = 0; n < whole.size(); ++n) {
    EXPECT_NE(refusal(whole.substr(0, n)), "no error") << n;
  }
}

// A damaged file opens or is refused, and what opens can be read to its last byte.
TEST_F(Safetensors, random_damage_is_refused_or_harmless) {
  const std::string whole =
      read_file(test::golden("mixtral-base/adapters/qv-r4-alpha32/adapter_model.safetensors"));
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), 8);
  const std::string path = folder_ / "x.safetensors";
  std::mt19937 random(1);
  int n_refused = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string bytes = whole;
    for (int i = 0; i < 1 + round % 3; ++i) {
      bytes[random() % (8 + header_bytes)] = static_cast<char>(random());
    }
    write_file(path, bytes);
    try {
      SafetensorsFile::open(path, round % 2 == 0 ? Access::mapped : Access::read).content_digest();
    } catch (const Error&) {
      ++n_refused;
    }
  }
  EXPECT_GT(n_refused, 500);
  EXPECT_LT(n_refused, 2000);
}

}  // namespace
}  // namespace lorry
