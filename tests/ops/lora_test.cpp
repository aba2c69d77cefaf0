// adapt: the pairs of several adapters on the rows that use them.
#include <gtest/gtest.h>

#include "ops/lora_support.h"

namespace lorry::test {
namespace {

class LoraTest : public testing::TestWithParam<Dtype> {};

// What adapt adds to row r at output o of a pair.
double delta(const Adapter& adapter, size_t pair, const Tensor& x, int64_t r, int64_t o) {
  const SitePatch& p = adapter.patches[pair];
  double sum = 0;
  for (int64_t i = 0; i < p.rank; ++i) {
    double t = 0;
    for (int64_t k = 0; k < x.cols(); ++k) {
      t += get(x, r, k) * rounded(x.dtype, get(adapter.a[pair](), i, k));
    }
    sum += double{p.scale} * t * rounded(x.dtype, get(adapter.b[pair](), o, i));
  }
  return sum;
}

// Three sites of one linear (q, k, v side by side), adapters of many ranks, ragged segments.
TEST_P(LoraTest, equals_the_reference_on_every_instruction_set) {
  const int64_t in = 37;
  const std::vector<int64_t> outs{130, 64, 20};
  std::vector<Adapter> adapters;
  for (const int32_t rank : {1, 3, 8, 16, 20, 64}) {
    adapters.push_back(make_adapter({{in, 130, rank}, {in, 64, rank == 3 ? 0 : rank}, {in, 20, 5}},
                                    static_cast<unsigned>(rank) * 10));
  }
  const std::vector<LoraSite> sites{{.first = 0, .in = in, .out = 130, .column = 0},
                                    {.first = 1, .in = in, .out = 64, .column = 130},
                                    {.first = 2, .in = in, .out = 20, .column = 194}};
  const std::vector<LoraSegment> segments{{0, 1, 0},   {1, 3, 1},   {5, 12, 2},
                                          {12, 40, 3}, {40, 41, 4}, {42, 49, 5}};
  const Matrix x = random_matrix(GetParam(), 50, in, 5);
  const Matrix y(Dtype::f32, 50, 214, 4);
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(50, 3, 64));
  same_everywhere(GetParam(), [&](Ops& ops) {
    std::vector<AdapterView> views;
    for (Adapter& a : adapters) pack(a, ops);
    for (const Adapter& a : adapters) views.push_back({a.patches, false});
    fill(y(), 6);
    ops.adapt(y(), x(), sites, segments, {views, {}, segments}, scratch());
    return bytes_of(y());
  });
  const Matrix base(Dtype::f32, 50, 214);
  fill(base(), 6);
  std::vector<int> adapter_of(50, -1);
  for (const LoraSegment& s : segments) {
    for (int32_t r = s.begin; r < s.end; ++r) adapter_of[static_cast<size_t>(r)] = s.adapter;
  }
  for (int64_t r = 0; r < 50; ++r) {
    for (int64_t c = 0; c < 214; ++c) {
      const size_t site = c < 130 ? 0 : c < 194 ? 1 : 2;
      const int a = adapter_of[static_cast<size_t>(r)];
      const double before = get(base(), r, c);
      if (a < 0 || adapters[static_cast<size_t>(a)].patches[site].rank == 0) {
        ASSERT_EQ(get(y(), r, c), before) << "row " << r << " column " << c;
        continue;
      }
      const double d =
          delta(adapters[static_cast<size_t>(a)], site, x(), r, c - sites[site].column);
      ASSERT_NEAR(get(y(), r, c), before + d, 2e-5 * (1 + std::abs(d)));
    }
  }
}

// Gate and up: sites a group apart, panels of 64 outputs 128 columns apart, rows by expert.
TEST_P(LoraTest, interleaved_sites_of_experts) {
  const int64_t in = 24;
  const int64_t out = 100;
  std::vector<PairSpec> specs;
  for (int i = 0; i < 6; ++i) specs.push_back({in, out, i == 4 ? 0 : 4 + i});
  Adapter adapter = make_adapter(specs, 20);
  // Sites 0-2: gate of three experts; 3-5: up.
  const std::vector<LoraSite> sites{
      {.first = 0, .group_stride = 1, .in = in, .out = out, .column = 0, .panel_stride = 128},
      {.first = 3, .group_stride = 1, .in = in, .out = out, .column = 64, .panel_stride = 128}};
  const std::vector<LoraSegment> segments{{0, 2, 0, 0}, {2, 9, 0, 1}, {10, 11, 0, 2}};
  const Matrix x = random_matrix(GetParam(), 11, in, 5);
  const Matrix y(Dtype::f32, 11, 256);
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(11, 2, 16));
  same_everywhere(GetParam(), [&](Ops& ops) {
    pack(adapter, ops);
    const std::vector<AdapterView> views{{adapter.patches, false}};
    fill(y(), 6);
    ops.adapt(y(), x(), sites, segments, {views, {}, {}}, scratch());
    return bytes_of(y());
  });
  const Matrix base(Dtype::f32, 11, 256);
  fill(base(), 6);
  for (const LoraSegment& s : segments) {
    for (int64_t r = s.begin; r < s.end; ++r) {
      for (int64_t c = 0; c < 256; ++c) {
        const int64_t o = c / 128 * 64 + c % 64;
        const auto pair = static_cast<size_t>((c / 64 % 2) * 3 + s.group);
        const double d = o < out ? delta(adapter, pair, x(), r, o) : 0.0;
        ASSERT_NEAR(get(y(), r, c), get(base(), r, c) + d, 2e-5 * (1 + std::abs(d)))
            << "row " << r << " column " << c;
      }
    }
  }
}

TEST_P(LoraTest, a_row_has_the_same_bits_alone_and_among_others) {
  for (const Variant& v : variants()) {
    ThreadPool pool(3);
    const auto ops = checked_ops(GetParam(), pool, v);
    Adapter adapter = make_adapter({{75, 90, 20}}, 30);
    pack(adapter, *ops);
    const std::vector<AdapterView> views{{adapter.patches, false}};
    const std::vector<LoraSite> sites{{.first = 0, .in = 75, .out = 90}};
    const Matrix x = random_matrix(GetParam(), 64, 75, 5);
    const Matrix alone = random_matrix(Dtype::f32, 64, 90, 6);
    const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(64, 1, 20));
    for (int64_t r = 0; r < 64; ++r) {
      const std::vector<LoraSegment> one{{0, 1, 0}};
      ops->adapt(rows(alone(), r, 1), rows(x(), r, 1), sites, one, {views, {}, {}}, scratch());
    }
    for (const int32_t n : {2, 7, 64}) {
      const Matrix y = random_matrix(Dtype::f32, 64, 90, 6);
      const std::vector<LoraSegment> all{{0, n, 0}};
      ops->adapt(rows(y(), 0, n), rows(x(), 0, n), sites, all, {views, {}, {}}, scratch());
      EXPECT_TRUE(bytes_of(rows(y(), 0, n)) == bytes_of(rows(alone(), 0, n)))
          << v.name << ", " << n << " rows";
    }
  }
}

// Ranks and widths that kernels elsewhere do not have, all in one batch, a row each.
TEST_P(LoraTest, lorax_fault_10_every_rank_and_width_and_all_mixed_in_one_batch) {
  const std::vector<int32_t> ranks{1,  2,  3,  4,  5,  7,  12, 15,  16,
                                   17, 24, 31, 33, 40, 63, 65, 100, 512};
  for (const auto& [in, out] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {33, 65}, {130, 63}}) {
    std::vector<Adapter> adapters;
    std::vector<LoraSegment> segments;
    for (const int32_t rank : ranks) {
      const auto i = static_cast<int32_t>(adapters.size());
      adapters.push_back(make_adapter({{in, out, rank}}, static_cast<unsigned>(rank)));
      segments.push_back({i, i + 1, i});
    }
    const auto n = static_cast<int64_t>(ranks.size());
    const std::vector<LoraSite> sites{{.first = 0, .in = in, .out = out}};
    const Matrix x = random_matrix(GetParam(), n, in, 5);
    const Matrix y(Dtype::f32, n, out, 4);
    const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(n, 1, 512));
    same_everywhere(GetParam(), [&](Ops& ops) {
      std::vector<AdapterView> views;
      for (Adapter& a : adapters) pack(a, ops);
      for (const Adapter& a : adapters) views.push_back({a.patches, false});
      fill(y(), 6, 0);
      ops.adapt(y(), x(), sites, segments, {views, {}, segments}, scratch());
      return bytes_of(y());
    });
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t o = 0; o < out; ++o) {
        const double want = delta(adapters[static_cast<size_t>(r)], 0, x(), r, o);
        ASSERT_NEAR(get(y(), r, o), want, 1e-3 * (1 + std::abs(want)))
            << ranks[static_cast<size_t>(r)];
      }
    }
  }
}

// One linear with three sites, of which k and v begin where a panel of it does, or not.
TEST_P(LoraTest, apply_has_the_bits_of_linear_and_adapt) {
  for (const int64_t q_out : {128, 130}) {
    const int64_t in = 37;
    const int64_t out = q_out + 64 + 20;
    std::vector<Adapter> adapters;
    for (const int32_t rank : {1, 16, 20, 64}) {
      adapters.push_back(make_adapter({{in, q_out, rank}, {in, 64, 0}, {in, 20, 5}},
                                      static_cast<unsigned>(rank) * 10));
    }
    const std::vector<LoraSite> sites{{.first = 0, .in = in, .out = q_out, .column = 0},
                                      {.first = 1, .in = in, .out = 64, .column = q_out},
                                      {.first = 2, .in = in, .out = 20, .column = q_out + 64}};
    // More rows than pass over a panel together; some without an adapter.
    const std::vector<LoraSegment> segments{{0, 1, 0}, {5, 12, 1}, {12, 140, 2}, {149, 160, 3}};
    const std::vector<int32_t> begin{0, 160};
    const Matrix x = random_matrix(GetParam(), 160, in, 5);
    const Matrix weight = random_matrix(Dtype::f32, out, in, 6);
    const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(160, 3, 64));
    for (const Variant& v : variants()) {
      ThreadPool pool(3);
      const auto ops = checked_ops(GetParam(), pool, v);
      const PackedWeight w(*ops, {weight()}, out, in);
      std::vector<AdapterView> views;
      for (Adapter& a : adapters) pack(a, *ops);
      for (const Adapter& a : adapters) views.push_back({a.patches, false});
      const LoraPlan plan{views, {}, segments};
      const Matrix expected(Dtype::f32, 160, out);
      ops->linear(expected(), x(), w(), {begin}, {});
      ops->adapt(expected(), x(), sites, segments, plan, scratch());
      const Matrix y(Dtype::f32, 160, out, 4);
      ops->apply(y(), x(), {w(), {begin}, sites, segments, plan, {}, scratch()});
      EXPECT_TRUE(bytes_of(y()) == bytes_of(expected())) << v.name << ", q of " << q_out;
      ops->linear(expected(), x(), w(), {begin}, {});
      ops->apply(y(), x(), {w(), {begin}, sites, {}, plan, {}, {}});
      EXPECT_TRUE(bytes_of(y()) == bytes_of(expected())) << v.name << ", no adapter";
    }
  }
}

// Gate and up of experts, with pairs alone and with a gain for the outputs of one.
TEST_P(LoraTest, apply_glu_has_the_bits_of_linear_adapt_and_glu) {
  const int64_t in = 24;
  const int64_t out = 100;
  std::vector<PairSpec> specs;
  for (int i = 0; i < 6; ++i) specs.push_back({in, out, i == 4 ? 0 : 4 + 5 * i});
  Adapter adapter = make_adapter(specs, 20);
  const std::vector<LoraSite> sites{
      {.first = 0, .group_stride = 1, .in = in, .out = out, .column = 0, .panel_stride = 128},
      {.first = 3, .group_stride = 1, .in = in, .out = out, .column = 64, .panel_stride = 128}};
  const std::vector<LoraSegment> segments{{0, 2, 0, 0}, {3, 155, 0, 1}, {160, 161, 0, 2}};
  const std::vector<int32_t> begin{0, 3, 160, 162};
  const Matrix x = random_matrix(GetParam(), 162, in, 5);
  std::vector<Matrix> weights;
  std::vector<Tensor> groups;
  for (unsigned g = 0; g < 3; ++g) weights.push_back(random_matrix(Dtype::f32, 256, in, 30 + g));
  for (const Matrix& m : weights) groups.push_back(m());
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(162, 2, 32));
  const Matrix gain = random_matrix(Dtype::f32, 1, 128, 8);
  SiteChange change;
  change.gain = gain().row<const float>(0);
  for (const Variant& v : variants()) {
    ThreadPool pool(3);
    const auto ops = checked_ops(GetParam(), pool, v);
    const PackedWeight w(*ops, groups, 256, in);
    pack(adapter, *ops);
    const std::vector<AdapterView> views{{adapter.patches, false}};
    const LoraPlan plan{views, {}, {}};
    for (const bool changed : {false, true}) {
      adapter.patches[1].change = changed ? &change : nullptr;
      const Matrix both(Dtype::f32, 162, 256);
      const Matrix expected(GetParam(), 162, out);
      ops->linear(both(), x(), w(), {begin}, {});
      ops->adapt(both(), x(), sites, segments, plan, scratch());
      ops->glu(expected(), both(), Activation::gelu_tanh);
      const Matrix y(GetParam(), 162, out, 3);
      ops->apply_glu(y(), both(), x(), {w(), {begin}, sites, segments, plan, {}, scratch()},
                     Activation::gelu_tanh);
      EXPECT_TRUE(bytes_of(y()) == bytes_of(expected())) << v.name << (changed ? ", gain" : "");
    }
    adapter.patches[1].change = nullptr;
  }
}

INSTANTIATE_TEST_SUITE_P(Act, LoraTest, testing::ValuesIn(kActs),
                         [](const auto& test) { return to_string(test.param); });

}  // namespace
}  // namespace lorry::test
