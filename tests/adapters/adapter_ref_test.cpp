#include "adapters/adapter_ref.h"

#include <gtest/gtest.h>

namespace lorry {
namespace {

TEST(AdapterRef, an_empty_name_is_the_base_model) {
  EXPECT_TRUE(AdapterRef("").empty());
  EXPECT_EQ(AdapterRef("").label(), "");
  EXPECT_EQ(AdapterRef("sql").label(), "sql");
}

TEST(AdapterRef, key_tells_sources_tokens_and_weights_apart_and_holds_no_token) {
  AdapterRef local("org/a");
  AdapterRef hub = local;
  hub.parts[0].source = AdapterSource::hub;
  AdapterRef mine = hub;
  mine.parts[0].api_token = "hf_secret_1";
  AdapterRef yours = hub;
  yours.parts[0].api_token = "hf_secret_2";
  EXPECT_NE(local.key(), hub.key());
  EXPECT_NE(hub.key(), mine.key());
  EXPECT_NE(mine.key(), yours.key());
  EXPECT_EQ(mine.key(), AdapterRef(mine).key());
  for (const std::string& text : {mine.key(), mine.label()}) {
    EXPECT_EQ(text.find("secret"), std::string::npos) << text;
  }
  AdapterRef with_token = local;
  with_token.parts[0].api_token = "hf_secret_1";
  EXPECT_EQ(local.key(), with_token.key()) << "local adapters need no token";
}

TEST(AdapterRef, a_merge_of_one_differs_from_the_adapter_and_label_says_how) {
  AdapterRef one("a");
  AdapterRef merged = one;
  merged.is_merge = true;
  EXPECT_NE(one.key(), merged.key());
  AdapterRef half = merged;
  half.parts[0].weight = 0.5F;
  EXPECT_NE(half.key(), merged.key());
  half.parts.push_back({"b", AdapterSource::local, "", 0.25F});
  EXPECT_EQ(half.label(), "cat(a*0.5,b*0.25)");
  AdapterRef seeded = half;
  seeded.merge.seed = 7;
  EXPECT_NE(seeded.key(), half.key());
}

}  // namespace
}  // namespace lorry
