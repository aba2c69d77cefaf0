// Managing adapters over HTTP: vLLM's load and unload, the list of all.
#include <filesystem>

#include <unistd.h>

#include "serve/lorax_test_base.h"

namespace lorry {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

class AdaptersApi : public ServerTest {
 protected:
  AdaptersApi()
      : root_(fs::temp_directory_path() / fmt::format("lorry_adapters_api_{}", getpid())) {
    fs::remove_all(root_);
    fs::create_directories(root_ / "sql");
    fs::create_directories(root_ / "team" / "law");
    options.adapter_root = root_;
  }
  ~AdaptersApi() override { fs::remove_all(root_); }

  Reply load(const std::string& name, const std::string& path, const std::string& more = "") {
    return post("/v1/load_lora_adapter",
                "{\"lora_name\":\"" + name + "\",\"lora_path\":\"" + path + "\"" + more + "}");
  }

  const fs::path root_;
};

TEST_F(AdaptersApi, a_folder_of_the_root_is_loaded_under_a_name) {
  Reply reply = load("db", "sql");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(reply.body, "Success: LoRA adapter 'db' added successfully.");
  EXPECT_EQ(load("law", (root_ / "team/law").string(), ",\"load_inplace\":true").status, 200);
  ASSERT_EQ(backend.loads().size(), 2U);
  EXPECT_EQ(backend.loads()[0].name, "db");
  EXPECT_EQ(backend.loads()[0].path, (root_ / "sql").string());
  EXPECT_FALSE(backend.loads()[0].in_place);
  EXPECT_TRUE(backend.loads()[1].in_place);
}

TEST_F(AdaptersApi, F6_paths_out_of_the_root_are_refused) {
  fs::create_directory_symlink("/etc", root_ / "out");
  for (const char* path : {"/etc", "..", "../..", "sql/../..", "out", "/", "~"}) {
    const Reply reply = load("x", path);
    EXPECT_TRUE(reply.status == 400 || reply.status == 404) << path << reply.body;
  }
  EXPECT_EQ(load("x", "nowhere").status, 404);
  EXPECT_EQ(load("x", "a\\u0000b").status, 400);
  EXPECT_EQ(load("../x", "sql").status, 400);
  EXPECT_TRUE(backend.loads().empty());
  stop_server();
  options.adapter_root.clear();
  EXPECT_THAT(load("x", "sql").body, HasSubstr("--adapter-root"));
}

TEST_F(AdaptersApi, what_cannot_be_loaded_says_why) {
  backend.set_load_error(Error(Code::bad_file, "r is 0"));
  Reply reply = load("db", "sql");
  EXPECT_EQ(reply.status, 400);
  EXPECT_THAT(reply.body, HasSubstr("r is 0"));
  // Too large for the memory: the adapter's fault, not a server that is overloaded.
  backend.set_load_error(Error(Code::over_capacity, "takes 9 GB"));
  EXPECT_EQ(load("db", "sql").status, 400);
  for (const char* body :
       {"{}", "[]", R"({"lora_name":7,"lora_path":"sql"})", R"({"lora_name":"a"})",
        R"({"lora_name":"a","lora_path":"sql","load_inplace":1})"}) {
    EXPECT_EQ(post("/v1/load_lora_adapter", body).status, 400) << body;
  }
}

TEST_F(AdaptersApi, unloading_forgets_a_name) {
  EXPECT_EQ(post("/v1/unload_lora_adapter", R"({"lora_name":"known"})").body,
            "Success: LoRA adapter 'known' removed successfully.");
  EXPECT_EQ(post("/v1/unload_lora_adapter", R"({"lora_name":"other"})").status, 404);
  EXPECT_EQ(post("/v1/unload_lora_adapter", "{}").status, 400);
}

TEST_F(AdaptersApi, the_list_tells_state_content_and_memory) {
  AdapterSnapshot snapshot;
  AdapterSnapshot::Entry sql;
  sql.name = "sql";
  sql.state = AdapterState::device;
  sql.registered = true;
  sql.digest = "ab";
  sql.bytes = 4096;
  sql.max_rank = 8;
  sql.sites = 12;
  sql.hits = 3;
  sql.idle_seconds = 1.5;
  AdapterSnapshot::Entry broken;
  broken.name = "broken";
  broken.state = AdapterState::failed;
  broken.error = "r is 0";
  snapshot.entries = {broken, sql};
  snapshot.memory.device.size = 1 << 20;
  backend.set_adapters(snapshot);
  const json::object list = get("/v1/adapters").json().as_object();
  const json::array& data = list.at("data").as_array();
  ASSERT_EQ(data.size(), 2U);
  EXPECT_EQ(data[0].at("state").as_string(), "failed");
  EXPECT_EQ(data[0].at("error").as_string(), "r is 0");
  EXPECT_TRUE(data[0].at("digest").is_null());
  EXPECT_EQ(data[1].at("state").as_string(), "device");
  EXPECT_EQ(data[1].at("digest").as_string(), "sha256:ab");
  EXPECT_EQ(data[1].at("rank").as_int64(), 8);
  EXPECT_EQ(data[1].at("idle_seconds").as_double(), 1.5);
  EXPECT_EQ(list.at("memory").at("device").at("bytes").as_int64(), 1 << 20);
}

}  // namespace
}  // namespace lorry
