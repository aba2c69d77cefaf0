// apply, apply_best and apply_glu of few rows, as in decode: what is done in one pass has the bits
// of linear, adapt and glu, whichever rows have an adapter and whichever one they had before.
#include <gtest/gtest.h>

#include "ops/lora_support.h"

namespace lorry::test {
namespace {

class ApplyTest : public testing::TestWithParam<Dtype> {};

// Whose pairs row r has; -1: no adapter's.
using Choice = std::vector<int32_t>;

// Runs of rows [begin, end) with one adapter.
void add_segments(std::vector<LoraSegment>& to, const Choice& adapter, int32_t begin, int32_t end,
                  int32_t group) {
  for (int32_t r = begin; r < end;) {
    const int32_t of = adapter[static_cast<size_t>(r)];
    int32_t last = r;
    while (last < end && adapter[static_cast<size_t>(last)] == of) ++last;
    if (of >= 0) to.push_back({r, last, of, group});
    r = last;
  }
}

// Mixed, the same for all, other ones for the same rows, and nothing for some.
std::vector<Choice> choices(int64_t rows, int32_t adapters) {
  std::vector<Choice> all(5);
  for (int32_t r = 0; r < rows; ++r) {
    all[0].push_back(r % adapters);
    all[1].push_back((adapters - 1 - r % adapters) % adapters);
    all[2].push_back(adapters - 1);
    all[3].push_back(r % 3 == 1 ? -1 : r / 3 % adapters);
    all[4].push_back(r == rows - 1 ? 0 : -1);
  }
  return all;
}

constexpr std::array<int32_t, 6> kRanks{1, 8, 13, 16, 40, 64};

// What apply is to make, by the operations one after the other.
void apply_parts(Ops& ops, const Tensor& y, const Tensor& x, const AdaptedLinear& l) {
  ops.linear(y, x, l.w, l.groups, l.scratch);
  ops.adapt(y, x, l.sites, l.segments, l.plan, l.lora_scratch);
}

std::vector<AdapterView> pack_all(std::vector<Adapter>& adapters, Ops& ops) {
  std::vector<AdapterView> views;
  for (Adapter& a : adapters) {
    pack(a, ops);
    views.push_back({a.patches, false});
  }
  return views;
}

void check_dense(Dtype act, const std::vector<int32_t>& counts, const std::vector<LoraSite>& sites,
                 int64_t out, WeightFormat format = {}) {
  const int64_t in = sites.front().in;
  std::vector<Adapter> adapters;
  for (const int32_t rank : kRanks) {
    std::vector<PairSpec> specs;
    for (const LoraSite& s : sites) specs.push_back({in, s.out, s.first == 1 ? rank % 16 : rank});
    adapters.push_back(make_adapter(specs, static_cast<unsigned>(rank) * 10));
  }
  const Matrix weight = random_matrix(Dtype::f32, out, in, 6);
  const Matrix x = random_matrix(act, 17, in, 5);
  const auto n_sites = static_cast<int64_t>(sites.size());
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(17, n_sites, 64));
  const Matrix expected(Dtype::f32, 17, out), y(Dtype::f32, 17, out, 4);
  std::vector<int32_t> best(17);
  for (const Variant& v : variants()) {
    ThreadPool pool(2);
    const auto ops = checked_ops(act, pool, v);
    Weight w = ops->weight_layout(1, out, in, format);
    const Buffer memory(static_cast<size_t>(w.group_bytes));
    w.data = memory.data();
    const Matrix room(Dtype::u8, 1, static_cast<int64_t>(ops->linear_scratch_bytes(17, in)));
    ops->pack(w, 0, 0, weight());
    const std::vector<AdapterView> views = pack_all(adapters, *ops);
    for (const int32_t n : counts) {
      const std::vector<int32_t> begin{0, n};
      for (const Choice& choice : choices(n, static_cast<int32_t>(adapters.size()))) {
        std::vector<LoraSegment> segments;
        add_segments(segments, choice, 0, n, 0);
        const LoraPlan plan{views, choice, segments};
        const AdaptedLinear l{w, {begin}, sites, segments, plan, room(), scratch()};
        apply_parts(*ops, rows(expected(), 0, n), rows(x(), 0, n), l);
        ops->apply(rows(y(), 0, n), rows(x(), 0, n), l);
        ASSERT_EQ(bytes_of(rows(y(), 0, n)), bytes_of(rows(expected(), 0, n)))
            << v.name << ", " << n << " rows";
        const Matrix again(Dtype::f32, n, out, 1);
        ops->apply_best(view(best.data(), Dtype::i32, {n}), again(), rows(x(), 0, n), l);
        ASSERT_EQ(bytes_of(again()), bytes_of(rows(expected(), 0, n))) << v.name << ", " << n;
        for (int64_t r = 0; r < n; ++r) {
          ASSERT_EQ(best[static_cast<size_t>(r)], place_of_best(expected(), r)) << v.name << r;
        }
      }
    }
  }
}

// Sites that begin with a panel, and within a row block of the linear, and leave outputs out.
TEST_P(ApplyTest, few_rows_have_the_bits_of_linear_and_adapt) {
  const std::vector<LoraSite> panels{{.first = 0, .in = 75, .out = 70, .column = 64},
                                     {.first = 1, .in = 75, .out = 64, .column = 192},
                                     {.first = 2, .in = 75, .out = 5, .column = 256}};
  check_dense(GetParam(), {1, 8, 9, 16}, panels, 275);
  const std::vector<LoraSite> sites{{.first = 0, .in = 75, .out = 70, .column = 3},
                                    {.first = 1, .in = 75, .out = 64, .column = 73},
                                    {.first = 2, .in = 75, .out = 5, .column = 138}};
  check_dense(GetParam(), {1, 2, 7, 8, 9, 16, 17}, sites, 147);
}

// More inputs than a shrink loads at once.
TEST_P(ApplyTest, few_rows_of_many_inputs) {
  check_dense(GetParam(), {9}, {{.first = 0, .in = 4700, .out = 66}}, 66);
}

TEST_P(ApplyTest, few_outputs) {
  check_dense(GetParam(), {1, 16, 17}, {{.first = 0, .in = 530, .out = 8}}, 8);
}

TEST_P(ApplyTest, few_rows_of_fp8) {
  if (GetParam() == Dtype::f32) return;  // has no kernel of its own
  const WeightFormat fp8{WeightFormat::Kind::fp8};
  check_dense(GetParam(), {3, 12}, {{.first = 0, .in = 75, .out = 70}}, 70, fp8);
  check_dense(GetParam(), {3, 12}, {{.first = 0, .in = 75, .out = 9}}, 9, fp8);
}

// Gate and up of experts, of which some have no rows and one has more than others.
TEST_P(ApplyTest, experts_of_few_rows) {
  constexpr int64_t kIn = 40;
  constexpr int64_t kOut = 100;
  constexpr int32_t kGroups = 4;
  std::vector<Adapter> adapters;
  for (const int32_t rank : kRanks) {
    std::vector<PairSpec> specs;
    for (int i = 0; i < 2 * kGroups; ++i) specs.push_back({kIn, kOut, i == 5 ? 0 : rank});
    adapters.push_back(make_adapter(specs, static_cast<unsigned>(rank) * 100));
  }
  const std::vector<LoraSite> sites{
      {.group_stride = 1, .groups = 4, .in = kIn, .out = kOut, .panel_stride = 128},
      {.first = 4,
       .group_stride = 1,
       .groups = 4,
       .in = kIn,
       .out = kOut,
       .column = 64,
       .panel_stride = 128}};
  std::vector<Matrix> weights;
  std::vector<Tensor> groups;
  for (unsigned g = 0; g < kGroups; ++g) {
    weights.push_back(random_matrix(Dtype::f32, 256, kIn, 30 + g));
  }
  for (const Matrix& m : weights) groups.push_back(m());
  const Matrix x = random_matrix(GetParam(), 40, kIn, 5);
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(40, 2, 64));
  const Matrix both(Dtype::f32, 40, 256), y(Dtype::f32, 40, 256, 4), expected(Dtype::f32, 40, 256);
  const Matrix act(GetParam(), 40, kOut, 3), expected_act(GetParam(), 40, kOut);
  // Up to 8 rows expected of an expert, up to 16, and more than that.
  const std::vector<std::vector<int32_t>> begins{
      {0, 1, 1, 9, 10}, {0, 0, 0, 0, 16}, {0, 11, 12, 12, 29}, {0, 20, 30, 35, 40}};
  for (const Variant& v : variants()) {
    ThreadPool pool(2);
    const auto ops = checked_ops(GetParam(), pool, v);
    const PackedWeight w(*ops, groups, 256, kIn);
    const std::vector<AdapterView> views = pack_all(adapters, *ops);
    for (const std::vector<int32_t>& begin : begins) {
      const int32_t n = begin.back();
      for (const Choice& choice : choices(n, static_cast<int32_t>(adapters.size()))) {
        std::vector<LoraSegment> segments;
        for (int32_t g = 0; g < kGroups; ++g) {
          const auto at = static_cast<size_t>(g);
          add_segments(segments, choice, begin[at], begin[at + 1], g);
        }
        const LoraPlan plan{views, {}, {}};
        const AdaptedLinear l{w(), {begin}, sites, segments, plan, {}, scratch()};
        const Tensor in = rows(x(), 0, n);
        apply_parts(*ops, rows(expected(), 0, n), in, l);
        ops->glu(rows(expected_act(), 0, n), rows(expected(), 0, n), Activation::silu);
        ops->apply(rows(y(), 0, n), in, l);
        ASSERT_EQ(bytes_of(rows(y(), 0, n)), bytes_of(rows(expected(), 0, n))) << v.name << n;
        ops->apply_glu(rows(act(), 0, n), rows(both(), 0, n), in, l, Activation::silu);
        ASSERT_EQ(bytes_of(rows(act(), 0, n)), bytes_of(rows(expected_act(), 0, n))) << v.name << n;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Act, ApplyTest, testing::ValuesIn(kActs),
                         [](const auto& test) { return to_string(test.param); });

}  // namespace
}  // namespace lorry::test
