// Every golden adapter of plain LoRA: what was packed is the delta that a separate numpy program
// computes from the same files (tools/make_adapter_deltas.py). The others (DoRA, embeddings, whole
// weights) load too; their logits are compared in tests/engine/golden_test.cpp.
#include <gtest/gtest.h>

#include "adapters/describe.h"
#include "adapters/support.h"
#include "weights/slice.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;

std::string folder_of(const std::string& model) { return test::golden_folder() + "/" + model; }

const SiteInfo* shape_of(const SiteTable& table, const Site& site, SiteInfo& fused) {
  for (const SiteInfo& s : table.sites) {
    if (s.site == site) return &s;
  }
  // DBRX's experts have no linears of their own in the table.
  for (const FusedParameter& f : table.fused) {
    const SiteKind kind = f.parameter == "w1"   ? SiteKind::gate
                          : f.parameter == "v1" ? SiteKind::up
                                                : SiteKind::down;
    if (kind != site.kind || f.layer != site.layer) continue;
    fused.in = f.in;
    fused.out = f.out;
    return &fused;
  }
  return nullptr;
}

// [u D x, v D y, |D|] with the vectors of the generator.
std::array<double, 3> project(const std::vector<double>& delta, int64_t in, int64_t out) {
  std::array<double, 3> p{};
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      const double d = delta[static_cast<size_t>(o * in + i)];
      const auto row = static_cast<double>(o + 1);
      const auto col = static_cast<double>(i + 1);
      p[0] += std::sin(0.23 * row) * d * std::cos(0.37 * col);
      p[1] += std::cos(1.7 * row) * d * std::sin(0.9 * col);
      p[2] += d * d;
    }
  }
  p[2] = std::sqrt(p[2]);
  return p;
}

std::string key_of(const Site& s) {
  return fmt::format("{} {} {}", to_string(s.kind), s.layer, s.expert);
}

void compare(const Adapter& adapter, const SiteTable& table, const json::object& expected) {
  EXPECT_EQ(adapter.sites().size(), expected.size());
  for (const AppliedSite& s : adapter.sites()) {
    const json::value* want = expected.if_contains(key_of(s.site));
    ASSERT_NE(want, nullptr) << key_of(s.site);
    SiteInfo fused;
    const SiteInfo* shape = shape_of(table, s.site, fused);
    ASSERT_NE(shape, nullptr);
    const SitePatch& pair = adapter.view().patches[static_cast<size_t>(table.index(s.site))];
    EXPECT_EQ(pair.rank, s.rank);
    EXPECT_EQ(pair.scale, s.scale);
    const std::array<double, 3> got =
        project(test::delta_of(pair, shape->in, shape->out), shape->in, shape->out);
    for (size_t i = 0; i < 3; ++i) {
      const double w = want->get_array()[i].to_number<double>();
      EXPECT_NEAR(got[i], w, 2e-6 * (1 + std::abs(w))) << key_of(s.site) << " " << i;
    }
  }
  // Sites that are not listed have no pair.
  int64_t pairs = 0;
  for (const SitePatch& p : adapter.view().patches) pairs += p.rank > 0 ? 1 : 0;
  EXPECT_EQ(pairs, static_cast<int64_t>(expected.size()));
}

TEST(GoldenAdapters, EveryTensorIsAppliedExactly) {
  const test::PackOps ops;
  const json::value all = parse_json_file(test::golden_folder() + "/adapter_deltas.json");
  int compared = 0;
  int others = 0;
  for (const auto& of_case : all.get_object()) {
    const std::string model(of_case.key());
    const SiteTable table = test::golden_sites(model);
    const AdapterTarget target{
        &table, &ops, test::golden_rows(folder_of(model) + "/model/model.safetensors", table)};
    const json::object& deltas = of_case.value().get_object();
    for (const auto& entry : fs::directory_iterator(folder_of(model) + "/adapters")) {
      const std::string name = entry.path().filename();
      SCOPED_TRACE(model + "/" + name);
      const json::value* expected = deltas.if_contains(name);
      const auto adapter = load_adapter(entry.path(), target);
      if (expected == nullptr) {
        const auto more = [](const AppliedSite& s) {
          return s.dora || s.replaced || s.site.kind == SiteKind::embed;
        };
        EXPECT_TRUE(std::any_of(adapter->sites().begin(), adapter->sites().end(), more));
        ++others;
      } else {
        compare(*adapter, table, expected->get_object());
        ++compared;
      }
    }
  }
  EXPECT_EQ(compared, 25);
  EXPECT_EQ(others, 4);
}

TEST(GoldenAdapters, ExpertsShareTheMatrixThatTheFileShares) {
  const test::PackOps ops;
  const SiteTable table = test::golden_sites("dbrx-base");
  const auto adapter =
      load_adapter(folder_of("dbrx-base") + "/adapters/experts-r8", {&table, &ops});
  const auto pair = [&](SiteKind kind, int32_t e) {
    return adapter->view().patches[static_cast<size_t>(table.index({kind, 1, e}))];
  };
  EXPECT_EQ(pair(SiteKind::gate, 0).a, pair(SiteKind::gate, 15).a);
  EXPECT_NE(pair(SiteKind::gate, 0).b, pair(SiteKind::gate, 15).b);
  EXPECT_EQ(pair(SiteKind::down, 0).b, pair(SiteKind::down, 15).b);
  EXPECT_NE(pair(SiteKind::down, 0).a, pair(SiteKind::down, 15).a);
  EXPECT_NE(pair(SiteKind::gate, 0).a, pair(SiteKind::up, 0).a);
}

TEST(GoldenAdapters, ACopyOfTheBaseWeightIsLeftOut) {
  const test::PackOps ops;
  const SiteTable table = test::golden_sites("mixtral-base");
  const std::string folder = folder_of("mixtral-base") + "/adapters/lm-head-r8";
  const auto same = load_adapter(
      folder, {&table, &ops,
               test::golden_rows(folder_of("mixtral-base") + "/model/model.safetensors", table)});
  ASSERT_EQ(same->sites().size(), 1U);
  EXPECT_FALSE(same->sites()[0].replaced);
  // Another base model: the copy is W of lm_head under this adapter.
  const BaseRows other = [](Tensor y, const Site&, int64_t) {
    std::fill_n(y.row<float>(0), y.shape.size(), 0.0F);
  };
  const auto replaced = load_adapter(folder, {&table, &ops, other});
  ASSERT_EQ(replaced->sites().size(), 1U);
  EXPECT_TRUE(replaced->sites()[0].replaced);
  EXPECT_GT(replaced->bytes(), same->bytes());
  EXPECT_NE(replaced->digest(), same->digest());
}

TEST(GoldenAdapters, DescriptionListsWhatIsApplied) {
  const test::PackOps ops;
  const SiteTable table = test::golden_sites("mixtral-base");
  const auto adapter =
      load_adapter(folder_of("mixtral-base") + "/adapters/patterns", {&table, &ops});
  const std::string text = describe_text(*adapter);
  for (const char* part : {"digest  sha256:", "made for  tiny/mixtral-base", "20 sites",
                           "rank at most 12", "q          rank 4, scale 4, 1 site, layers 0\n",
                           "q          rank 8, scale 2, 1 site, layers 1\n",
                           "v          rank 12, scale 0.5, 2 sites, layers 0-1\n",
                           "gate       rank 2, scale 8, 4 sites, layers 0\n",
                           "gate       rank 2, scale 1.5, 4 sites, layers 1\n"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\nis not in\n" << text;
  }
  const json::object o = describe_json(*adapter);
  EXPECT_EQ(o.at("sites").get_array().size(), 20U);
  EXPECT_EQ(o.at("digest").as_string().size(), 64U);
  const json::object& first = o.at("sites").get_array()[0].get_object();
  EXPECT_EQ(first.at("kind").as_string(), "q");
  EXPECT_EQ(first.at("module").as_string(), "model.layers.0.self_attn.q_proj");
  EXPECT_FALSE(first.contains("expert"));
}

}  // namespace
}  // namespace lorry
