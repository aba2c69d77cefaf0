// Models from a hub: which files make one, what the cache gives out again.
#include <filesystem>

#include "fetch/hub_test_base.h"
#include "fetch/remote_files.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> selected(const std::vector<std::string>& names, RemoteKind wanted) {
  std::vector<ListedFile> listing;
  for (const std::string& name : names) listing.push_back({name, 1});
  std::vector<std::string> out;
  for (const ListedFile& f : select_files(listing, wanted, "it").files) out.push_back(f.name);
  return out;
}

TEST(SelectFiles, a_model_is_its_json_its_template_and_its_shards) {
  EXPECT_THAT(
      selected({"README.md", "config.json", "tokenizer.json", "tokenizer.model", "modeling.py",
                "chat_template.jinja", "model.safetensors.index.json", "pytorch_model.bin",
                "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors",
                "consolidated.00.safetensors", "onnx/config.json"},
               RemoteKind::model),
      ElementsAre("chat_template.jinja", "config.json", "model.safetensors.index.json",
                  "tokenizer.json", "model-00001-of-00002.safetensors",
                  "model-00002-of-00002.safetensors"));
  EXPECT_THAT(selected({"config.json", "lorry-int8.safetensors"}, RemoteKind::any),
              ElementsAre("config.json", "lorry-int8.safetensors"));
}

TEST(SelectFiles, any_is_an_adapter_where_there_is_one) {
  EXPECT_THAT(selected({"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"},
                       RemoteKind::any),
              ElementsAre("adapter_config.json", "adapter_model.safetensors"));
  EXPECT_THAT(selected({"config.json", "medusa_lm_head.safetensors"}, RemoteKind::any),
              ElementsAre("config.json", "medusa_lm_head.safetensors"));
}

TEST(SelectFiles, what_is_no_model_is_refused_with_the_reason) {
  const auto refused = [](const std::vector<std::string>& names, Code code, const char* text) {
    const Error error = error_of([&] { selected(names, RemoteKind::model); });
    EXPECT_EQ(error.code(), code);
    EXPECT_THAT(error.what(), HasSubstr(text));
  };
  refused({"config.json", "pytorch_model.bin"}, Code::unsupported, "pickle weights are refused");
  refused({"config.json", "model.gguf"}, Code::unsupported, "GGUF weights are refused");
  refused({"config.json"}, Code::not_found, "expected model.safetensors");
  refused({"model.safetensors", "tokenizer.json"}, Code::not_found, "expected config.json");
  refused({"adapter_config.json", "adapter_model.safetensors"}, Code::unsupported,
          "this is an adapter");
  refused({"config.json", "model.safetensors", "../x.json"}, Code::bad_file, "leads out of");
  refused({"config.json", "model.safetensors", "/etc/x.json"}, Code::bad_file, "leads out of");
}

class HubModel : public HubTest {
 protected:
  HubModel() {
    hub_.commits.begin()->second = {
        {"config.json", {.content = R"({"model_type": "mixtral"})"}},
        {"tokenizer.json", {.content = "{}"}},
        {"model.safetensors.index.json",
         {.content = R"({"weight_map": {"a": "model-1-of-2.safetensors",
                                        "b": "model-2-of-2.safetensors"}})"}},
        {"model-1-of-2.safetensors", {.content = noise(70'000, 1), .is_lfs = true}},
        {"model-2-of-2.safetensors", {.content = noise(60'000, 2), .is_lfs = true}},
        {"README.md", {.content = "words"}}};
  }
  Fetched pull(RemoteKind wanted = RemoteKind::model) const {
    return HubSource(options_).resolve("org/name", "", {}, wanted);
  }
};

TEST_F(HubModel, is_fetched_whole_and_found_again_without_the_hub) {
  hub_.start();
  const Fetched fetched = pull(RemoteKind::any);
  EXPECT_EQ(fetched.kind, RemoteKind::model);
  EXPECT_EQ(read_file(join_path(fetched.folder, "model-2-of-2.safetensors")), noise(60'000, 2));
  EXPECT_EQ(hub_.server.count("GET", "README.md"), 0U);
  EXPECT_EQ(pull().downloaded_bytes, 0);
  hub_.server.stop();
  EXPECT_EQ(pull().folder, fetched.folder);
  options_.offline = true;
  EXPECT_EQ(pull().folder, fetched.folder);
  EXPECT_EQ(pull(RemoteKind::any).kind, RemoteKind::model);
}

TEST_F(HubModel, with_a_shard_missing_from_the_cache_is_not_given_out) {
  hub_.start();
  const Fetched fetched = pull();
  options_.offline = true;
  fs::remove(join_path(fetched.folder, "model-1-of-2.safetensors"));
  const Error error = error_of([&] { pull(); });
  EXPECT_EQ(error.code(), Code::not_found);
  EXPECT_THAT(error.what(), HasSubstr("HF_HUB_OFFLINE"));
  options_.offline = false;
  pull();
  EXPECT_EQ(hub_.server.count("GET", "model-1-of-2.safetensors"), 1U);  // its blob is still there
}

TEST_F(HubModel, is_no_adapter_and_an_adapter_is_no_model) {
  hub_.start();
  EXPECT_EQ(error_of_resolve().code(), Code::unsupported);
  hub_.change([&] {
    hub_.commits.begin()->second = {{"adapter_config.json", {.content = "{}"}},
                                    {"adapter_model.safetensors", {.content = noise(10)}}};
  });
  EXPECT_THAT(error_of([&] { pull(); }).what(), HasSubstr("this is an adapter"));
}

}  // namespace
}  // namespace lorry
