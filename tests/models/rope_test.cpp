// Rotary frequencies of every kind against transformers (tools/make_rope_cases.py).
#include "models/rope.h"

#include <cmath>
#include <vector>

#include <boost/json/serialize.hpp>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/json.h"
#include "models/common_config.h"

namespace lorry {
namespace {

Config config_with(const json::value& scaling) {
  json::object o{{"model_type", "mixtral"}};
  o["rope_scaling"] = scaling;
  return Config::parse(json::serialize(o), "config.json");
}

RopeSpec spec_of(const json::value& scaling) {
  return rope_spec(config_with(scaling), 10000.0, 64, 2048);
}

TEST(Rope, every_kind_equals_transformers) {
  const json::value doc =
      parse_json_file(std::string(LORRY_SOURCE_DIR) + "/tests/golden/rope.json");
  int n = 0;
  for (const json::value& c : doc.at("cases").as_array()) {
    const RopeSpec spec = spec_of(c.at("rope_scaling"));
    const auto got = inverse_frequencies(spec, 64, c.at("length").as_int64());
    const json::array& want = c.at("inverse_frequencies").as_array();
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_NEAR(got[i], want[i].as_double(), 2e-6 * want[i].as_double())
          << c.at("name") << " " << c.at("length") << " " << i;
    }
    EXPECT_NEAR(spec.attention_factor, c.at("attention_factor").as_double(), 1e-9) << c.at("name");
    ++n;
  }
  EXPECT_EQ(n, 14);
}

TEST(Rope, transformers_5_writes_rope_parameters) {
  const Config c = Config::parse(
      R"({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}})", "x");
  const RopeSpec spec = rope_spec(c, 10000.0, 64, 2048);
  EXPECT_EQ(spec.kind, RopeSpec::Kind::linear);
  EXPECT_EQ(spec.theta, 500.0);
}

TEST(Rope, the_older_key_type_works_and_su_is_longrope) {
  EXPECT_EQ(spec_of({{"type", "linear"}, {"factor", 2.0}}).kind, RopeSpec::Kind::linear);
  json::object su{{"type", "su"}, {"original_max_position_embeddings", 512}};
  su["short_factor"] = json::array(32, 1.0);
  su["long_factor"] = json::array(32, 2.0);
  EXPECT_EQ(spec_of(su).kind, RopeSpec::Kind::longrope);
}

TEST(Rope, an_unknown_kind_is_refused_by_name) {
  try {
    spec_of({{"rope_type", "spiral"}, {"factor", 2.0}});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::unsupported);
    EXPECT_NE(std::string(e.what()).find("spiral"), std::string::npos);
  }
}

TEST(Rope, the_table_uses_each_rows_own_length) {
  RopeTable table(spec_of({{"rope_type", "dynamic"}, {"factor", 2.0}}), 64);
  std::vector<float> cos(3 * 32), sin(3 * 32);
  const std::vector<int32_t> positions{5, 5, 5}, lengths{100, 3000, 9000};
  table.fill(view(cos.data(), Dtype::f32, {3, 32}), view(sin.data(), Dtype::f32, {3, 32}),
             positions, lengths);
  for (size_t r = 0; r < 3; ++r) {
    const auto inv =
        inverse_frequencies(spec_of({{"rope_type", "dynamic"}, {"factor", 2.0}}), 64, lengths[r]);
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_EQ(cos[r * 32 + i], std::cos(5.0F * inv[i]));
      EXPECT_EQ(sin[r * 32 + i], std::sin(5.0F * inv[i]));
    }
  }
}

// The first ones are kept from call to call, later ones are not.
TEST(Rope, the_table_has_the_same_bits_whether_a_position_was_asked_for_before) {
  const RopeSpec spec = spec_of({{"rope_type", "linear"}, {"factor", 2.0}});
  const auto inv = inverse_frequencies(spec, 64, 1);
  RopeTable table(spec, 64);
  const std::vector<int32_t> positions{0, 5, 8191, 8192, 100'000, 5};
  const auto n = static_cast<int64_t>(positions.size());
  for (int round = 0; round < 2; ++round) {
    std::vector<float> cos(positions.size() * 32), sin(positions.size() * 32);
    table.fill(view(cos.data(), Dtype::f32, {n, 32}), view(sin.data(), Dtype::f32, {n, 32}),
               positions, positions);
    for (size_t r = 0; r < positions.size(); ++r) {
      for (size_t i = 0; i < 32; ++i) {
        const float angle = static_cast<float>(positions[r]) * inv[i];
        ASSERT_EQ(cos[r * 32 + i], std::cos(angle)) << positions[r];
        ASSERT_EQ(sin[r * 32 + i], std::sin(angle)) << positions[r];
      }
    }
  }
}

}  // namespace
}  // namespace lorry
