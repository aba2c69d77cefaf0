#include "weights/safetensors.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "weights/files.h"

namespace lorry {
namespace {

using testing::HasSubstr;

class SafetensorsFiles : public testing::Test {
 protected:
  test::Folder folder_;
};

TEST_F(SafetensorsFiles, what_is_written_is_read_back) {
  const std::string path = folder_ / "x.safetensors";
  std::vector<float> f(24);
  for (size_t i = 0; i < f.size(); ++i) f[i] = static_cast<float>(i);
  std::vector<uint16_t> h{1, 2, 3};
  std::vector<uint8_t> bytes{9, 8, 7};
  std::vector<int64_t> wide{-5};
  const Tensor whole = view(f.data(), Dtype::f32, {4, 6});
  write_safetensors(path,
                    {{"part", columns(rows(whole, 1, 2), 2, 3)},
                     {"cube", view(f.data(), Dtype::f32, {2, 3, 4})},
                     {"a \"name\"\n", view(h.data(), Dtype::bf16, {3})},
                     {"bytes", view(bytes.data(), Dtype::u8, {3, 1})},
                     {"wide", view(wide.data(), Dtype::i64, {})}},
                    {{"format", "pt"}, {"by", "a \"test\""}});
  for (const Access access : {Access::mapped, Access::read}) {
    const SafetensorsFile file = SafetensorsFile::open(path, access);
    EXPECT_EQ(file.tensors().size(), 5U);
    EXPECT_EQ(file.metadata().at("by"), "a \"test\"");
    const Tensor part = file.tensor("part");
    EXPECT_EQ(part.shape, (Shape{2, 3}));
    EXPECT_EQ(part.row<float>(0)[0], 8.0F);
    EXPECT_EQ(part.row<float>(1)[2], 16.0F);
    EXPECT_EQ(file.tensor("cube").row<float>(5)[3], 23.0F);
    EXPECT_EQ(file.tensor("a \"name\"\n").dtype, Dtype::bf16);
    EXPECT_EQ(file.tensor("bytes").row<uint8_t>(2)[0], 7);
    EXPECT_EQ(file.tensor("wide").row<int64_t>(0)[0], -5);
    EXPECT_FALSE(file.has("absent"));
    EXPECT_THAT(test::message_of([&] { file.tensor("absent"); }), HasSubstr("\"absent\""));
  }
}

TEST_F(SafetensorsFiles, tensors_are_aligned_whatever_the_file_does) {
  const std::string path = folder_ / "x.safetensors";
  std::string header =
      "{" + test::entry("b", "U8", "[1]", 0, 1) + "," + test::entry("f", "F32", "[1]", 1, 5) + "}";
  write_file(path, test::raw_safetensors(header, std::string("\7\0\0\x80\x3f", 5)));
  for (const Access access : {Access::mapped, Access::read}) {
    const SafetensorsFile file = SafetensorsFile::open(path, access);
    const Tensor f = file.tensor("f");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(f.data) % 4, 0U);
    EXPECT_EQ(f.row<float>(0)[0], 1.0F);
    EXPECT_EQ(file.tensor("b").row<uint8_t>(0)[0], 7);
  }
}

TEST_F(SafetensorsFiles, digests_tell_headers_and_contents_apart) {
  const auto digests = [&](const std::string& name, float value) {
    const std::string path = folder_ / "x.safetensors";
    write_safetensors(path, {{name, view(&value, Dtype::f32, {1})}});
    const SafetensorsFile mapped = SafetensorsFile::open(path, Access::mapped);
    const SafetensorsFile read = SafetensorsFile::open(path, Access::read);
    EXPECT_EQ(mapped.content_digest(), read.content_digest());
    return std::pair(mapped.header_digest(), mapped.content_digest());
  };
  const auto a1 = digests("a", 1);
  const auto a2 = digests("a", 2);
  const auto b1 = digests("b", 1);
  EXPECT_EQ(a1, digests("a", 1));
  EXPECT_EQ(a1.first, a2.first);
  EXPECT_NE(a1.second, a2.second);
  EXPECT_NE(a1.first, b1.first);
  EXPECT_NE(a1.second, b1.second);
}

TEST_F(SafetensorsFiles, a_moved_file_keeps_its_tensors) {
  const std::string path = folder_ / "x.safetensors";
  float value = 3;
  write_safetensors(path, {{"a", view(&value, Dtype::f32, {1})}});
  for (const Access access : {Access::mapped, Access::read}) {
    std::vector<SafetensorsFile> files;
    for (int i = 0; i < 5; ++i) files.push_back(SafetensorsFile::open(path, access));
    for (const SafetensorsFile& file : files) EXPECT_EQ(file.tensor("a").row<float>(0)[0], 3.0F);
  }
}

}  // namespace
}  // namespace lorry
