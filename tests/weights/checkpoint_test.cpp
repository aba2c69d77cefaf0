#include "weights/checkpoint.h"

#include <limits>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "weights/files.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::string refusal(const std::string& folder) {
  return test::message_of([&] { Checkpoint::open(folder); });
}

TEST(Checkpoint, opens_a_single_file) {
  Checkpoint checkpoint = Checkpoint::open(test::golden("mixtral-base/model"));
  EXPECT_EQ(checkpoint.config().text("model_type"), "mixtral");
  const int64_t vocab = checkpoint.config().integer("vocab_size", {1, 1 << 20});
  const int64_t hidden = checkpoint.config().integer("hidden_size", {1, 1 << 20});
  EXPECT_TRUE(checkpoint.has("lm_head.weight"));
  EXPECT_EQ(checkpoint.tensor("lm_head.weight", {vocab, hidden}).cols(), hidden);
  EXPECT_EQ(
      checkpoint.total_bytes(),
      static_cast<int64_t>(fs::file_size(test::golden("mixtral-base/model/model.safetensors"))));
}

// A hint: what it names need not be there, and no number of rows leads out of the file.
TEST(Checkpoint, reading_ahead_takes_any_name_and_rows) {
  Checkpoint checkpoint = Checkpoint::open(test::golden("mixtral-base/model"));
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const char* name : {"lm_head.weight", "model.norm.weight", "absent"}) {
    for (const int64_t first : {int64_t{0}, int64_t{1}, kMost, int64_t{-1}}) {
      for (const int64_t n : {int64_t{0}, int64_t{2}, kMost, int64_t{-1}}) {
        checkpoint.will_need(name, first, n);
      }
    }
  }
  EXPECT_THAT(checkpoint.unused(), testing::Contains("lm_head.weight"));  // a hint is no use
}

TEST(Checkpoint, opens_every_golden_adapter_and_model) {
  int n_files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(test::golden(""))) {
    if (entry.path().extension() != ".safetensors") continue;
    const SafetensorsFile file = SafetensorsFile::open(entry.path().string(), Access::read);
    EXPECT_FALSE(file.tensors().empty()) << entry.path();
    ++n_files;
  }
  EXPECT_GT(n_files, 20);
}

TEST(Checkpoint, digest_is_that_of_the_content_not_of_the_place) {
  test::Folder copy;
  fs::copy(test::golden("dbrx-base/model"), copy.path(),
           fs::copy_options::overwrite_existing | fs::copy_options::recursive);
  const Digest original = Checkpoint::open(test::golden("dbrx-base/model")).digest();
  EXPECT_EQ(Checkpoint::open(copy.path()).digest(), original);
  write_file(copy / "config.json", read_file(copy / "config.json") + " ");
  EXPECT_NE(Checkpoint::open(copy.path()).digest(), original);
}

TEST(Checkpoint, a_folder_without_weights_says_what_to_do) {
  test::Folder folder;
  EXPECT_THAT(refusal(folder / "absent"), HasSubstr("expected the folder of a model"));
  EXPECT_THAT(refusal(folder.path()), HasSubstr("config.json"));
  write_file(folder / "config.json", "{}");
  EXPECT_THAT(refusal(folder.path()), HasSubstr("no model.safetensors"));
  write_file(folder / "pytorch_model.bin", "x");
  EXPECT_THAT(refusal(folder.path()), HasSubstr("torch.load"));
  write_file(folder / "m.gguf", "GGUF");
  EXPECT_THAT(refusal(folder / "m.gguf"), HasSubstr("GGUF"));
  write_file(folder / "config.json", "[]");
  EXPECT_THAT(refusal(folder.path()), HasSubstr("JSON object"));
}

// E12: each row of the table that is about one file.
class OneFile : public testing::Test {
 protected:
  void SetUp() override {
    write_file(folder_ / "config.json", "{}");
    std::vector<float> values(6, 1.0F);
    std::vector<int32_t> ints(2, 1);
    write_safetensors(folder_ / "model.safetensors",
                      {{"w", view(values.data(), Dtype::f32, {2, 3})},
                       {"i", view(ints.data(), Dtype::i32, {2})},
                       {"extra", view(values.data(), Dtype::f32, {6})}});
  }
  std::string tensor_refusal(const std::string& name, const Shape& shape) {
    Checkpoint checkpoint = Checkpoint::open(folder_.path());
    return test::message_of([&] { checkpoint.tensor(name, shape); });
  }
  test::Folder folder_;
};

TEST_F(OneFile, E12_missing_tensor_names_file_tensor_and_expected_shape) {
  EXPECT_THAT(tensor_refusal("experts.7.w1", {2, 3}),
              AllOf(HasSubstr(folder_ / "model.safetensors"), HasSubstr("\"experts.7.w1\""),
                    HasSubstr("missing"), HasSubstr("[2, 3]")));
}

TEST_F(OneFile, E12_wrong_shape_names_expected_and_found) {
  for (const Shape& shape : {Shape{3, 2}, Shape{6}, Shape{2, 3, 1}}) {
    EXPECT_THAT(tensor_refusal("w", shape),
                AllOf(HasSubstr(folder_ / "model.safetensors"), HasSubstr("\"w\""),
                      HasSubstr("expected shape " + to_string(shape)), HasSubstr("found [2, 3]")));
  }
}

TEST_F(OneFile, E12_wrong_dtype_names_expected_and_found) {
  EXPECT_THAT(tensor_refusal("i", {2}),
              AllOf(HasSubstr("\"i\""), HasSubstr("F32, F16 or BF16"), HasSubstr("found I32")));
}

TEST_F(OneFile, unused_lists_what_was_never_asked_for) {
  Checkpoint checkpoint = Checkpoint::open(folder_.path());
  EXPECT_THAT(checkpoint.unused(), ElementsAre("extra", "i", "w"));
  checkpoint.tensor("w", {2, 3});
  EXPECT_THAT(checkpoint.unused(), ElementsAre("extra", "i"));
  EXPECT_NE(test::message_of([&] { checkpoint.tensor("extra", {1}); }), "no error");
  EXPECT_THAT(checkpoint.unused(), ElementsAre("extra", "i"));
}

// E12: the rows that are about shards.
class Shards : public testing::Test {
 protected:
  void SetUp() override {
    fs::copy(test::golden("mixtral-sliding/model"), folder_.path(),
             fs::copy_options::overwrite_existing | fs::copy_options::recursive);
  }
  std::string index() const { return read_file(folder_ / kIndex); }
  // Replaces the first occurrence of `from` in the index.
  void edit_index(const std::string& from, const std::string& to) {
    std::string text = index();
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_file(folder_ / kIndex, text.replace(at, from.size(), to));
  }

  static constexpr const char* kIndex = "model.safetensors.index.json";
  static constexpr const char* kFirst = "model-00001-of-00002.safetensors";
  static constexpr const char* kSecond = "model-00002-of-00002.safetensors";
  test::Folder folder_;
};

TEST_F(Shards, are_one_checkpoint) {
  Checkpoint checkpoint = Checkpoint::open(folder_.path());
  const int64_t hidden = checkpoint.config().integer("hidden_size", {1, 1 << 20});
  const int64_t n_layers = checkpoint.config().integer("num_hidden_layers", {1, 1000});
  for (int64_t i = 0; i < n_layers; ++i) {
    checkpoint.tensor("model.layers." + std::to_string(i) + ".input_layernorm.weight", {hidden});
  }
  EXPECT_THAT(checkpoint.unused(), testing::Not(testing::IsEmpty()));
  EXPECT_EQ(checkpoint.total_bytes(), static_cast<int64_t>(fs::file_size(folder_ / kFirst) +
                                                           fs::file_size(folder_ / kSecond)));
}

TEST_F(Shards, E12_missing_shard) {
  fs::remove(folder_ / kSecond);
  EXPECT_THAT(refusal(folder_.path()), AllOf(HasSubstr(folder_ / kSecond), HasSubstr("missing")));
}

TEST_F(Shards, E12_extra_shard) {
  const std::string extra = folder_ / "model-00003-of-00003.safetensors";
  fs::copy(folder_ / kFirst, extra);
  EXPECT_THAT(refusal(folder_.path()), AllOf(HasSubstr(extra), HasSubstr("not named")));
}

TEST_F(Shards, E12_weight_map_values_are_plain_file_names) {
  for (const char* value :
       {"../model-00001-of-00002.safetensors", "/model-00001-of-00002.safetensors",
        "a/model.safetensors", "a\\\\model.safetensors", "..safetensors", "", ".", "x.bin",
        "a\\u0000.safetensors"}) {
    const std::string before = index();
    edit_index("\"" + std::string(kFirst) + "\"", "\"" + std::string(value) + "\"");
    EXPECT_THAT(refusal(folder_.path()), AllOf(HasSubstr(kIndex), HasSubstr("weight_map")))
        << value;
    write_file(folder_ / kIndex, before);
  }
  edit_index("\"" + std::string(kFirst) + "\"", "7");
  EXPECT_THAT(refusal(folder_.path()), HasSubstr("not a string"));
}

TEST_F(Shards, E12_tensor_in_two_shards) {
  fs::copy(folder_ / kFirst, folder_ / kSecond, fs::copy_options::overwrite_existing);
  EXPECT_THAT(refusal(folder_.path()),
              AllOf(HasSubstr(folder_ / kSecond), HasSubstr("also in"), HasSubstr(kFirst)));
}

TEST_F(Shards, E12_tensor_that_its_shard_does_not_hold) {
  edit_index("\"lm_head.weight\": \"" + std::string(kSecond),
             "\"lm_head.weight\": \"" + std::string(kFirst));
  EXPECT_THAT(refusal(folder_.path()),
              AllOf(HasSubstr("\"lm_head.weight\""), HasSubstr("not in shard"), HasSubstr(kFirst)));
}

TEST_F(Shards, E12_tensor_that_the_index_does_not_name) {
  edit_index("\"lm_head.weight\"", "\"another.weight\"");
  EXPECT_THAT(refusal(folder_.path()),
              AllOf(HasSubstr("\"another.weight\""), HasSubstr("not in shard")));
  edit_index("\"another.weight\": \"" + std::string(kSecond) + "\",", "");
  EXPECT_THAT(refusal(folder_.path()),
              AllOf(HasSubstr("\"lm_head.weight\""), HasSubstr("not in the weight_map")));
}

TEST_F(Shards, E12_index_of_another_form) {
  for (const char* text : {"[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{}})"}) {
    write_file(folder_ / kIndex, text);
    EXPECT_THAT(refusal(folder_.path()), HasSubstr("weight_map"));
  }
  write_file(folder_ / kIndex, "{");
  EXPECT_THAT(refusal(folder_.path()), HasSubstr(kIndex));
}

TEST_F(Shards, E11_a_git_lfs_pointer_in_place_of_a_shard) {
  write_file(folder_ / kSecond, "version https://git-lfs.github.com/spec/v1\noid sha256:00\n");
  EXPECT_THAT(refusal(folder_.path()), AllOf(HasSubstr(kSecond), HasSubstr("Git LFS pointer")));
}

}  // namespace
}  // namespace lorry
