// Medusa heads of an adapter folder: what is taken, what is refused, and where it lies in memory.
#include "adapters/medusa.h"

#include <cstring>
#include <limits>

#include <gtest/gtest.h>

#include "adapters/describe.h"
#include "adapters/support.h"
#include "ops/medusa.h"

namespace lorry::test {
namespace {

const Sizes kSizes{1, 2, 4, 4, 2, 6, 5};

// A folder of heads in the making.
struct HeadsDraft {
  std::string config = R"({"medusa_num_heads": 2, "medusa_num_layers": 1})";
  std::string file = "medusa_lm_head.safetensors";
  std::map<std::string, std::pair<Shape, std::vector<float>>> tensors;

  HeadsDraft& add(const std::string& name, Shape shape, float seed = 1) {
    std::vector<float> values(static_cast<size_t>(shape.size()));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = seed + 0.1F * static_cast<float>(i) + static_cast<float>(tensors.size());
    }
    tensors[name] = {shape, std::move(values)};
    return *this;
  }
  HeadsDraft& head(int32_t i, int32_t blocks, bool output) {
    for (int32_t j = 0; j < blocks; ++j) {
      add(fmt::format("{}.{}.linear.weight", i, j), {4, 4});
      add(fmt::format("{}.{}.linear.bias", i, j), {4});
    }
    return output ? add(fmt::format("{}.{}.weight", i, blocks), {5, 4}) : *this;
  }
  std::string write(const std::string& folder) {
    std::filesystem::create_directories(folder);
    write_file(folder + "/config.json", config);
    std::map<std::string, Tensor> views;
    for (auto& [name, t] : tensors) views[name] = view(t.second.data(), Dtype::f32, t.first);
    write_safetensors(folder + "/" + file, views);
    return folder;
  }
};

HeadsDraft v2() {
  HeadsDraft d;
  d.head(0, 1, false).head(1, 1, false);
  d.config = R"({"medusa_num_heads": 2, "medusa_num_layers": 1, "version": 2})";
  return d;
}

class Medusa : public testing::Test {
 protected:
  std::unique_ptr<Adapter> load(const std::string& path, int32_t max_heads = 4) {
    AdapterLimits limits;
    limits.max_medusa_heads = max_heads;
    return load_adapter(path, target_, limits);
  }
  std::unique_ptr<Adapter> load(HeadsDraft draft, int32_t max_heads = 4) {
    return load(draft.write(folder()), max_heads);
  }
  void refuse(HeadsDraft draft, Code code, const std::vector<std::string>& parts,
              int32_t max_heads = 4) {
    const std::string path = draft.write(folder());
    expect_error(code, parts, [&] { load(path, max_heads); });
  }
  std::string folder() { return temporary_.path() + "/" + std::to_string(n_++); }

  TempFolder temporary_;
  int n_ = 0;
  PackOps ops_;
  SiteTable sites_ = mixtral_sites(kSizes);
  AdapterTarget target_{&sites_, &ops_, {}};
};

TEST_F(Medusa, heads_of_version_1_have_outputs_of_their_own) {
  HeadsDraft draft;
  draft.head(0, 2, true).head(1, 2, true);
  draft.config = R"({"medusa_num_heads": 2, "medusa_num_layers": 2, "version": 1,
                     "base_model_name_or_path": "tiny", "transformers_version": "4.36.2"})";
  const auto adapter = load(draft);
  const MedusaView medusa = adapter->view().medusa;
  EXPECT_EQ(medusa.shape.heads, 2);
  EXPECT_EQ(medusa.shape.blocks, 2);
  EXPECT_TRUE(medusa.shape.own_output);
  EXPECT_TRUE(adapter->sites().empty());
  EXPECT_EQ(adapter->base_model(), "tiny");
  // Every value is where the layout says, in memory that is counted.
  const MedusaLayout layout(ops_, medusa.shape);
  EXPECT_EQ(adapter->bytes(), layout.bytes());
  const auto expect_values = [&](size_t at, const std::string& name) {
    const auto& values = draft.tensors.at(name).second;
    const auto* got = reinterpret_cast<const float*>(medusa.data + at);
    EXPECT_EQ(at % 64, 0U);
    EXPECT_LE(at + values.size() * 4, layout.bytes());
    EXPECT_TRUE(std::equal(values.begin(), values.end(), got)) << name;
  };
  for (int32_t i = 0; i < 2; ++i) {
    for (int32_t j = 0; j < 2; ++j) {
      expect_values(layout.matrix(i, j), fmt::format("{}.{}.linear.weight", i, j));
      expect_values(layout.bias(i, j), fmt::format("{}.{}.linear.bias", i, j));
    }
    expect_values(layout.output(i), fmt::format("{}.2.weight", i));
  }
}

TEST_F(Medusa, heads_follow_their_adapter_when_it_is_moved) {
  const std::string path = folder();
  Draft lora;
  lora.pair("lm_head", 2, 4, 5).write(path);
  HeadsDraft draft = v2();
  draft.file = "heads.safetensors";
  const auto adapter = load(draft.write(path));
  const AdapterView before = adapter->view();
  const std::byte* image = before.patches[static_cast<size_t>(sites_.index({SiteKind::lm_head}))].a;
  Buffer moved(adapter->bytes());
  std::memcpy(moved.data(), image, adapter->bytes());
  adapter->rebase(moved.data());
  EXPECT_EQ(adapter->view().medusa.data - moved.data(), before.medusa.data - image);
}

TEST_F(Medusa, heads_of_version_2_have_none_and_a_file_without_version_is_told_by_its_tensors) {
  EXPECT_FALSE(load(v2())->medusa().own_output);
  HeadsDraft unsaid = v2();
  unsaid.config = HeadsDraft().config;
  EXPECT_FALSE(load(unsaid)->medusa().own_output);
  HeadsDraft first;
  first.head(0, 1, true).head(1, 1, true);
  EXPECT_TRUE(load(first)->medusa().own_output);
}

TEST_F(Medusa, the_file_may_have_any_name_if_it_is_the_only_one) {
  HeadsDraft draft = v2();
  draft.file = "model.safetensors";
  const std::string path = draft.write(folder());
  EXPECT_EQ(load(path)->medusa().heads, 2);
  draft.file = "other.safetensors";
  draft.write(path);
  expect_error(Code::bad_file, {path, "medusa_lm_head.safetensors", "found 2"},
               [&] { load(path); });
  draft.file = "medusa_lm_head.safetensors";
  EXPECT_EQ(load(draft.write(path))->medusa().heads, 2);
}

TEST_F(Medusa, beside_a_lora_adapter_both_are_loaded) {
  const std::string path = folder();
  Draft lora;
  lora.pair("lm_head", 2, 4, 5).write(path);
  const auto alone = load(path);
  HeadsDraft draft = v2();
  draft.file = "heads.safetensors";
  const auto both = load(draft.write(path));
  EXPECT_EQ(both->medusa().heads, 2);
  ASSERT_EQ(both->sites().size(), 1U);
  EXPECT_EQ(both->sites()[0].module, "lm_head");
  EXPECT_EQ(alone->medusa().heads, 0);
  EXPECT_NE(alone->digest(), both->digest());
  expect_error(Code::unsupported, {"--max-medusa-heads"}, [&] { load(path, 0); });
  AdapterLimits limits;
  limits.max_medusa_heads = 4;
  const std::vector<MergePart> parts{{path, 1, "a"}, {path, 1, "b"}};
  expect_error(Code::unsupported, {path, "cannot be merged"},
               [&] { AdapterFolder::open_merged(parts, {}, target_, limits); });
}

TEST_F(Medusa, the_heads_are_part_of_the_identity) {
  const auto a = load(v2());
  EXPECT_EQ(a->digest(), load(v2())->digest());
  HeadsDraft other = v2();
  other.tensors["1.0.linear.bias"].second[3] += 1;
  EXPECT_NE(a->digest(), load(other)->digest());
}

TEST_F(Medusa, description_tells_of_them) {
  const auto adapter = load(v2());
  EXPECT_NE(describe_text(*adapter).find("2 Medusa heads of 1 layers"), std::string::npos);
  EXPECT_EQ(describe_json(*adapter).at("medusa_heads").as_int64(), 2);
}

TEST_F(Medusa, a_config_without_heads_is_not_theirs) {
  const std::string path = folder();
  Draft lora;
  lora.pair("lm_head", 2, 4, 5).write(path);
  for (const char* config : {R"({"model_type": "mixtral"})", R"({"medusa_num_heads": null})"}) {
    write_file(path + "/config.json", config);
    EXPECT_EQ(load(path)->medusa().heads, 0);
  }
  write_file(path + "/config.json", "{");
  expect_error(Code::bad_file, {"config.json"}, [&] { load(path); });
}

TEST_F(Medusa, refuses_what_the_options_do_not_admit) {
  refuse(v2(), Code::unsupported, {"config.json", "--max-medusa-heads N"}, 0);
  refuse(v2(), Code::unsupported, {"medusa_num_heads is 2", "--max-medusa-heads 1"}, 1);
}

TEST_F(Medusa, refuses_a_config_by_field) {
  const auto with = [](const std::string& config) {
    HeadsDraft d = v2();
    d.config = config;
    return d;
  };
  refuse(with(R"({"medusa_num_heads": 0})"), Code::bad_file, {"medusa_num_heads is 0"});
  refuse(with(R"({"medusa_num_heads": "2"})"), Code::bad_file, {"medusa_num_heads is \"2\""});
  refuse(with(R"({"medusa_num_heads": 1.5})"), Code::bad_file, {"medusa_num_heads is 1.5E0"});
  refuse(with(R"({"medusa_num_heads": 1e300})"), Code::bad_file, {"medusa_num_heads is 1E300"});
  refuse(with(R"({"medusa_num_heads": 2})"), Code::bad_file, {"medusa_num_layers is null"});
  refuse(with(R"({"medusa_num_heads": 2, "medusa_num_layers": 17})"), Code::bad_file,
         {"medusa_num_layers is 17", "1 to 16"});
  refuse(with(R"({"medusa_num_heads": 2, "medusa_num_layers": 1, "version": 3})"),
         Code::unsupported, {"version is 3"});
  refuse(with(R"({"medusa_num_heads": 2, "medusa_num_layers": 2, "version": 2})"),
         Code::unsupported, {"medusa_num_layers is 2"});
}

TEST_F(Medusa, refuses_tensors_by_name) {
  HeadsDraft missing = v2();
  missing.tensors.erase("1.0.linear.bias");
  refuse(missing, Code::bad_file, {"medusa_lm_head.safetensors", "1.0.linear.bias", "found none"});

  HeadsDraft unused = v2();
  unused.add("2.0.linear.weight", {4, 4});
  refuse(unused, Code::bad_file, {"2.0.linear.weight", "fits nowhere"});

  HeadsDraft output = v2();
  output.add("0.1.weight", {5, 4});
  refuse(output, Code::bad_file, {"0.1.weight", "without output matrices"});

  HeadsDraft half;
  half.head(0, 1, true).head(1, 1, false);
  refuse(half, Code::bad_file, {"1.1.weight", "[5, 4]"});

  HeadsDraft shape = v2();
  shape.add("0.0.linear.weight", {4, 5});
  refuse(shape, Code::bad_file, {"0.0.linear.weight", "[4, 4]", "[4, 5]"});

  HeadsDraft vocabulary;
  vocabulary.head(0, 1, true).head(1, 1, true).add("1.1.weight", {6, 4});
  refuse(vocabulary, Code::bad_file, {"1.1.weight", "[5, 4]", "[6, 4]"});

  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3.4e38F}) {
    HeadsDraft broken = v2();
    broken.tensors["1.0.linear.weight"].second[7] = bad;
    refuse(broken, Code::bad_file, {"1.0.linear.weight", "element 7"});
  }
}

TEST_F(Medusa, refuses_files_that_are_not_there_or_no_safetensors) {
  const std::string path = v2().write(folder());
  std::filesystem::remove(path + "/medusa_lm_head.safetensors");
  expect_error(Code::not_found, {path, "medusa_lm_head.safetensors"}, [&] { load(path); });
  write_file(path + "/medusa_lm_head.pt", "x");
  expect_error(Code::unsupported, {path, "pickle"}, [&] { load(path); });
}

TEST_F(Medusa, refuses_more_bytes_than_an_adapter_may_take) {
  const std::string path = v2().write(folder());
  AdapterLimits limits;
  limits.max_medusa_heads = 2;
  limits.max_bytes = 300;
  EXPECT_THROW(load_adapter(path, target_, limits), Error);
}

}  // namespace
}  // namespace lorry::test
