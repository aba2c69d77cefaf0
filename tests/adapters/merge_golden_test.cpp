// Merging golden adapters: tensor by tensor against PEFT's add_weighted_adapter, and for `cat`, in
// all combinations of formats, against the sum that it stands for.
#include <gtest/gtest.h>

#include "adapters/merge.h"
#include "adapters/support.h"

namespace lorry {
namespace {

namespace fs = std::filesystem;

struct Case {
  std::string name;
  SiteTable table;
  std::string model = name + "/model";
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = [] {
    std::vector<Case> list;
    for (const char* name :
         {"mixtral-base", "mixtral-v5-target-parameters", "mixtral-sliding", "dbrx-base"}) {
      list.push_back({name, test::golden_sites(name)});
    }
    list.push_back({"mixtral-merges", test::golden_sites("mixtral-base"), "mixtral-base/model"});
    list.push_back({"dbrx-merges", test::golden_sites("dbrx-base"), "dbrx-base/model"});
    return list;
  }();
  return all;
}

std::string adapter_folder(const std::string& model, const std::string& adapter) {
  return test::golden_folder() + "/" + model + "/adapters/" + adapter;
}

AdapterTarget target_of(const Case& c, const Ops& ops) {
  return {&c.table, &ops,
          test::golden_rows(test::golden_folder() + "/" + c.model + "/model.safetensors", c.table)};
}

std::vector<MergeSource> sources_of(const Case& c, const json::object& merge,
                                    const AdapterTarget& target) {
  std::vector<MergeSource> sources;
  const json::array& adapters = merge.at("adapters").as_array();
  for (size_t i = 0; i < adapters.size(); ++i) {
    const std::string folder = adapter_folder(c.name, test::text(adapters[i]));
    const float weight = merge.at("weights").as_array()[i].to_number<float>();
    sources.push_back({CheckedFolder::open(folder, test::text(adapters[i]), target, {}), weight});
  }
  return sources;
}

// PEFT's matrices end in zeros where an adapter lacks the module; ours end earlier. Ours of an
// embedding's A has a row for each token, PEFT's a column.
void expect_equal(Tensor got, const Tensor& want, bool turned) {
  std::vector<float> columns(static_cast<size_t>(got.shape.size()));
  if (turned) {
    const Tensor t = view(columns.data(), Dtype::f32, {got.shape[1], got.shape[0]});
    copy_transposed(t, got);
    got = t;
  }
  ASSERT_LE(got.shape[0], want.shape[0]);
  ASSERT_LE(got.shape[1], want.shape[1]);
  for (int64_t r = 0; r < want.shape[0]; ++r) {
    for (int64_t c = 0; c < want.shape[1]; ++c) {
      const bool ours = r < got.shape[0] && c < got.shape[1];
      EXPECT_NEAR(ours ? got.row<const float>(r)[c] : 0.0F, want.row<const float>(r)[c], 2e-6F)
          << r << ", " << c;
    }
  }
}

// Compares the tensors that the case holds of one merge: the A and B of some modules.
void compare(const Case& c, const json::object& merge, const SafetensorsFile& golden) {
  const test::PackOps ops;
  const AdapterTarget target = target_of(c, ops);
  std::vector<MergeSource> sources = sources_of(c, merge, target);
  const MergeSpec spec = test::golden_merge(merge);
  MergePlan plan = plan_merge(sources, spec, c.table.index, {int64_t{1} << 30, 512});
  const json::value& config = merge.at("merged_config");
  EXPECT_EQ(plan.rank, config.at("r").to_number<int32_t>());
  EXPECT_EQ(plan.rank, config.at("lora_alpha").to_number<int32_t>());
  EXPECT_EQ(plan.use_rslora, config.at("use_rslora").as_bool());
  MergedTensors merged("merged", std::move(sources), spec, std::move(plan), target);
  merged.load(ops.act());
  const std::string prefix = test::text(merge.at("key")) + ".base_model.";
  int compared = 0;
  for (const TensorInfo& info : golden.tensors()) {
    if (!info.name.starts_with(prefix)) continue;
    SCOPED_TRACE(info.name);
    const auto own =
        std::find_if(merged.tensors().begin(), merged.tensors().end(),
                     [&](const TensorInfo& t) { return info.name.ends_with("." + t.name); });
    ASSERT_NE(own, merged.tensors().end());
    const bool turned = info.name.find("lora_embedding_A") != info.name.npos;
    expect_equal(merged.tensor(*own), golden.tensor(info), turned);
    ++compared;
  }
  EXPECT_GE(compared, 2) << prefix;
}

TEST(GoldenMerges, every_tensor_is_what_peft_makes) {
  size_t merges = 0;
  for (const Case& c : cases()) {
    const std::string folder = test::golden_folder() + "/" + c.name;
    const json::value doc = parse_json_file(folder + "/golden.json");
    const auto golden = SafetensorsFile::open(folder + "/golden.safetensors", Access::read);
    for (const json::value& m : doc.at("merges").as_array()) {
      compare(c, m.as_object(), golden);
    }
    merges += doc.at("merges").as_array().size();
  }
  EXPECT_GE(merges, 52U);
}

struct Loaded {
  std::string folder, name;
  std::unique_ptr<Adapter> adapter;
};

// All golden adapters of plain pairs that fit the table.
std::vector<Loaded> load_all(const Case& c, const std::vector<std::string>& models,
                             const Ops& ops) {
  std::vector<Loaded> all;
  for (const std::string& model : models) {
    std::vector<std::string> names;
    for (const auto& e : fs::directory_iterator(adapter_folder(model, ""))) {
      const std::string name = e.path().filename();
      if (name.starts_with("dora") || name.starts_with("save") || name.starts_with("embed")) {
        continue;
      }
      names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    for (const std::string& name : names) {
      const std::string folder = adapter_folder(model, name);
      all.push_back({folder, name, load_adapter(folder, target_of(c, ops))});
    }
  }
  return all;
}

struct Extent {
  int64_t in = 0, out = 0;
};

Extent extent_of(const SiteTable& table, const Site& site) {
  for (const SiteInfo& s : table.sites) {
    if (s.site == site) return {s.in, s.out};
  }
  for (const FusedParameter& f : table.fused) {
    const SiteKind kind = f.parameter == "w1"   ? SiteKind::gate
                          : f.parameter == "v1" ? SiteKind::up
                                                : SiteKind::down;
    if (kind == site.kind && f.layer == site.layer) return {f.in, f.out};
  }
  return {};
}

// PEFT's quirk: the first adapter's use_rslora, with the sum of the ranks that the configs allow.
double merged_scale(const std::vector<Loaded*>& parts) {
  double rank = 0;
  bool rslora = false;
  for (const Loaded* p : parts) {
    const json::value config = parse_json_file(p->folder + "/adapter_config.json");
    if (p == parts.front()) rslora = config.at("use_rslora").as_bool();
    double largest = config.at("r").to_number<double>();
    for (const auto& pattern : config.at("rank_pattern").as_object()) {
      largest = std::max(largest, pattern.value().to_number<double>());
    }
    rank += largest;
  }
  return rslora ? std::sqrt(rank) : 1;
}

void expect_weighted_sum(const Case& c, const Adapter& merged, const std::vector<Loaded*>& parts,
                         const std::vector<double>& weights) {
  const double factor = merged_scale(parts);
  for (int32_t i = 0; i < c.table.index.size(); ++i) {
    const auto at = static_cast<size_t>(i);
    const bool adapted = std::any_of(parts.begin(), parts.end(), [&](const Loaded* p) {
      return p->adapter->view().patches[at].rank > 0;
    });
    EXPECT_EQ(merged.view().patches[at].rank > 0, adapted) << "site " << i;
  }
  for (const AppliedSite& s : merged.sites()) {
    const auto at = static_cast<size_t>(c.table.index(s.site));
    const auto [in, out] = extent_of(c.table, s.site);
    ASSERT_GT(in, 0);
    std::vector<double> want(static_cast<size_t>(in * out));
    for (size_t p = 0; p < parts.size(); ++p) {
      const SitePatch& pair = parts[p]->adapter->view().patches[at];
      if (pair.rank == 0) continue;
      const std::vector<double> delta = test::delta_of(pair, in, out);
      for (size_t k = 0; k < want.size(); ++k) want[k] += factor * weights[p] * delta[k];
    }
    const std::vector<double> got = test::delta_of(merged.view().patches[at], in, out);
    double worst = 0, largest = 0;
    for (size_t k = 0; k < want.size(); ++k) {
      worst = std::max(worst, std::abs(got[k] - want[k]));
      largest = std::max(largest, std::abs(want[k]));
    }
    ASSERT_LE(worst, 1e-6 * (1 + largest)) << s.module;
  }
}

// Per-expert and fused names, both generations of stacking, patterns, rsLoRA, all ranks, lm_head
// with its copy of the base weight: whatever the formats, cat is the sum, times the root of the
// merged rank when the first adapter uses rsLoRA (as PEFT).
void expect_cat_is_the_sum(const Case& c, const std::vector<std::string>& models) {
  const test::PackOps ops;
  std::vector<Loaded> all = load_all(c, models, ops);
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t k = i + 1; k < all.size(); ++k) {
      SCOPED_TRACE(all[i].name + " and " + all[k].name);
      const std::vector<MergePart> parts{{all[i].folder, 0.75F, all[i].name},
                                         {all[k].folder, -1.5F, all[k].name}};
      const auto merged = AdapterFolder::open_merged(parts, {}, target_of(c, ops), {})->read();
      expect_weighted_sum(c, *merged, {&all[i], &all[k]}, {0.75, -1.5});
    }
  }
}

TEST(GoldenMerges, cat_is_the_weighted_sum_of_the_deltas_in_all_formats_of_mixtral) {
  expect_cat_is_the_sum(cases()[0], {"mixtral-base", "mixtral-v5-target-parameters"});
}

TEST(GoldenMerges, cat_is_the_weighted_sum_of_the_deltas_in_all_formats_of_dbrx) {
  expect_cat_is_the_sum(cases()[3], {"dbrx-base"});
}

TEST(GoldenMerges, one_adapter_is_scaled_by_its_weight_whatever_the_strategy) {
  const Case& c = cases()[1];
  const test::PackOps ops;
  std::vector<Loaded> all = load_all(c, {c.name}, ops);
  for (Loaded& one : all) {
    MergeSpec spec;
    spec.strategy = MergeSpec::Strategy::dare_ties;
    spec.density = 0.5;
    const std::vector<MergePart> parts{{one.folder, -0.5F, one.name}};
    const auto merged = AdapterFolder::open_merged(parts, spec, target_of(c, ops), {})->read();
    expect_weighted_sum(c, *merged, {&one}, {-0.5});
  }
}

TEST(GoldenMerges, experts_go_on_sharing_the_matrix_that_the_files_share) {
  const Case& c = cases()[3];
  const test::PackOps ops;
  const std::vector<MergePart> parts{{adapter_folder(c.name, "experts-r8"), 0.5F, "x"},
                                     {adapter_folder(c.name, "everything-r8"), 0.5F, "y"}};
  for (const auto s : {MergeSpec::Strategy::cat, MergeSpec::Strategy::dare_linear}) {
    MergeSpec spec;
    spec.strategy = s;
    spec.density = 0.5;
    const auto merged = AdapterFolder::open_merged(parts, spec, target_of(c, ops), {})->read();
    const auto pair = [&](SiteKind kind, int32_t e) {
      return merged->view().patches[static_cast<size_t>(c.table.index({kind, 1, e}))];
    };
    EXPECT_EQ(pair(SiteKind::gate, 0).a, pair(SiteKind::gate, 15).a);
    EXPECT_NE(pair(SiteKind::gate, 0).b, pair(SiteKind::gate, 15).b);
    EXPECT_EQ(pair(SiteKind::down, 0).b, pair(SiteKind::down, 15).b);
  }
}

}  // namespace
}  // namespace lorry
