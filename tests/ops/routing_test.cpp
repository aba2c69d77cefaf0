// route and group.
#include <algorithm>
#include <array>
#include <map>

#include <gtest/gtest.h>

#include "ops/route_support.h"
#include "ops/support.h"

namespace lorry::test {
namespace {

TEST(Route, chooses_and_normalises_as_the_reference_does) {
  struct Case {
    int32_t experts, k;
    float p;
  };
  for (const Case& c : {Case{8, 2, 1.0F}, Case{16, 4, 1.0F}, Case{16, 4, 0.0F}, Case{5, 3, 2.0F},
                        Case{70, 6, 3.0F}, Case{1, 1, 1.0F}, Case{4, 4, 1.0F}}) {
    OwnedRoute r(20, c.experts, c.k);
    const Matrix scores = random_matrix(Dtype::f32, 20, c.experts, 3, 2.0);
    same_everywhere(Dtype::f32, [&](Ops& ops) {
      ops.route(r.route, scores(), {c.k, c.p});
      Bytes all = bytes_of(r.expert());
      append(all, bytes_of(r.weight()));
      return all;
    });
    for (int64_t t = 0; t < 20; ++t) {
      std::vector<std::pair<double, int>> order;
      double total = 0;
      for (int e = 0; e < c.experts; ++e) {
        order.push_back({-get(scores(), t, e), e});
        total += std::exp(get(scores(), t, e));
      }
      std::sort(order.begin(), order.end());
      double norm = 0;
      for (size_t j = 0; j < size_t(c.k); ++j) {
        norm += std::pow(std::exp(-order[j].first) / total, double{c.p});
      }
      norm = c.p == 0 ? 1 : std::pow(norm, 1 / double{c.p});
      for (size_t j = 0; j < size_t(c.k); ++j) {
        ASSERT_EQ(r.expert().row<int32_t>(t)[j], order[j].second);
        ASSERT_NEAR(r.weight().row<float>(t)[j], std::exp(-order[j].first) / total / norm, 1e-6);
      }
    }
  }
}

TEST(Route, ties_take_the_lower_expert) {
  OwnedRoute r(2, 6, 3);
  const Matrix scores(Dtype::f32, 2, 6);
  const std::vector<float> first{1, 2, 1, 2, 2, 0};
  for (int64_t e = 0; e < 6; ++e) {
    set(scores(), 0, e, double{first[size_t(e)]});
    set(scores(), 1, e, 0.5);
  }
  same_everywhere(Dtype::f32, [&](Ops& ops) {
    ops.route(r.route, scores(), {3, 1.0F});
    return bytes_of(r.expert());
  });
  EXPECT_EQ(std::vector<int32_t>(r.expert().row<int32_t>(0), r.expert().row<int32_t>(0) + 3),
            (std::vector<int32_t>{1, 3, 4}));
  EXPECT_EQ(std::vector<int32_t>(r.expert().row<int32_t>(1), r.expert().row<int32_t>(1) + 3),
            (std::vector<int32_t>{0, 1, 2}));
}

TEST(Route, nan_scores_still_name_experts_that_exist) {
  OwnedRoute r(1, 4, 4);
  const Matrix scores(Dtype::f32, 1, 4);
  for (int64_t e = 0; e < 4; ++e) set(scores(), 0, e, std::nan(""));
  ThreadPool pool(1);
  checked_ops(Dtype::f32, pool)->route(r.route, scores(), {4, 1.0F});
  std::vector<int32_t> experts(r.expert().row<int32_t>(0), r.expert().row<int32_t>(0) + 4);
  std::sort(experts.begin(), experts.end());
  EXPECT_EQ(experts, (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_TRUE(std::isnan(get(r.weight(), 0, 0)));
}

// The sorted rows are a permutation in order of (expert, adapter, row), and the segments cover
// exactly the rows with an adapter.
void expect_sorted(const OwnedRoute& r, const std::vector<int32_t>& row_adapter) {
  const auto rows = static_cast<int32_t>(row_adapter.size());
  const auto k = static_cast<int32_t>(r.expert().cols());
  const auto experts = static_cast<int32_t>(r.begin().cols()) - 1;
  const int32_t* begin = r.begin().row<int32_t>(0);
  const int32_t* source = r.source().row<int32_t>(0);
  ASSERT_EQ(begin[0], 0);
  ASSERT_EQ(begin[experts], rows * k);
  std::vector<int> taken(size_t(rows * k), 0);
  for (int32_t t = 0; t < rows; ++t) {
    for (int32_t j = 0; j < k; ++j) {
      const int32_t at = r.slot().row<int32_t>(t)[j];
      const int32_t e = r.expert().row<int32_t>(t)[j];
      ASSERT_EQ(source[at], t);
      ASSERT_TRUE(begin[e] <= at && at < begin[e + 1]);
      ++taken[size_t(at)];
    }
  }
  ASSERT_EQ(std::count(taken.begin(), taken.end(), 1), rows * k);
  // Runs of one adapter within each expert, rows rising within a run.
  std::vector<int32_t> covered(size_t(rows * k), -1);
  for (const LoraSegment& s : r.route.segments()) {
    ASSERT_TRUE(begin[s.group] <= s.begin && s.begin < s.end && s.end <= begin[s.group + 1]);
    for (int32_t i = s.begin; i < s.end; ++i) covered[size_t(i)] = s.adapter;
  }
  for (int32_t e = 0; e < experts; ++e) {
    std::map<int32_t, int> runs;
    for (int32_t i = begin[e]; i < begin[e + 1]; ++i) {
      const int32_t a = row_adapter[size_t(source[i])];
      ASSERT_EQ(covered[size_t(i)], a);
      if (i == begin[e] || row_adapter[size_t(source[i - 1])] != a) {
        ASSERT_EQ(runs[a]++, 0) << "an adapter's rows lie apart";
      } else {
        ASSERT_LT(source[i - 1], source[i]);
      }
    }
  }
  size_t expected_segments = 0;
  for (int32_t i = 0; i < rows * k; ++i) {
    const bool new_group = std::find(begin, begin + experts, i) != begin + experts;
    const bool run = i == 0 || new_group || covered[size_t(i)] != covered[size_t(i - 1)];
    expected_segments += covered[size_t(i)] >= 0 && run ? 1 : 0;
  }
  ASSERT_EQ(r.route.segments().size(), expected_segments);
}

TEST(Group, sorts_by_expert_adapter_and_row) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const int32_t rows = 1 + int32_t(random() % 40);
    const int32_t experts = 2 + int32_t(random() % 8);
    const int32_t k = 1 + int32_t(random() % 2);
    const int32_t adapters = int32_t(random() % 5);
    OwnedRoute r(rows, experts, k);
    std::vector<int32_t> row_adapter;
    for (int32_t t = 0; t < rows; ++t) {
      row_adapter.push_back(int32_t(random() % unsigned(adapters + 1)) - 1);
      const auto e = int32_t(random() % unsigned(experts));
      r.expert().row<int32_t>(t)[0] = e;
      if (k == 2) {
        r.expert().row<int32_t>(t)[1] =
            (e + 1 + int32_t(random() % unsigned(experts - 1))) % experts;
      }
    }
    ThreadPool pool(1);
    const std::vector<AdapterView> views(static_cast<size_t>(adapters));
    checked_ops(Dtype::f32, pool)->group(r.route, {views, row_adapter, {}});

    expect_sorted(r, row_adapter);
    if (HasFatalFailure()) return;
  }
}

// More choices than a block looks at together, and adapters on either side of each other.
TEST(Group, sorts_long_prompts) {
  const int32_t rows = 1700, experts = 5, k = 3;
  const std::vector<AdapterView> views(4);
  std::mt19937 random(11);
  OwnedRoute r(rows, experts, k);
  std::vector<int32_t> row_adapter;
  std::vector<std::array<uint32_t, 3>> order;  // expert, adapter (none: the last), choice
  for (int32_t t = 0; t < rows; ++t) {
    row_adapter.push_back(int32_t(random() % 5) - 1);
    const auto first = int32_t(random() % unsigned(experts));
    for (int32_t j = 0; j < k; ++j) {
      const int32_t e = (first + j) % experts;
      r.expert().row<int32_t>(t)[j] = e;
      order.push_back({uint32_t(e), uint32_t(row_adapter.back()), uint32_t(t * k + j)});
    }
  }
  std::sort(order.begin(), order.end());
  ThreadPool pool(1);
  checked_ops(Dtype::f32, pool)->group(r.route, {views, row_adapter, {}});
  for (size_t i = 0; i < order.size(); ++i) {
    const auto [e, adapter, choice] = order[i];
    ASSERT_EQ(r.source().row<int32_t>(0)[i], int32_t(choice) / k);
    ASSERT_EQ(r.slot().row<int32_t>(choice / k)[choice % k], int32_t(i));
    ASSERT_LE(r.begin().row<int32_t>(0)[e], int32_t(i));
    ASSERT_GT(r.begin().row<int32_t>(0)[e + 1], int32_t(i));
  }
}

// Ranks with experts of their own: together they have the rows of all, none twice.
TEST(Group, own_experts_get_their_rows_and_no_others) {
  const int32_t rows = 30, experts = 7, k = 2;
  const std::vector<AdapterView> views(2);
  std::vector<int32_t> row_adapter;
  for (int32_t t = 0; t < rows; ++t) row_adapter.push_back(t % 3 - 1);
  std::vector<int> found(size_t(rows * k), 0);
  for (const auto& [first, n] : {std::pair{0, 3}, std::pair{3, 2}, std::pair{5, 2}}) {
    OwnedRoute r(rows, experts, k);
    r.route.first_own = first;
    r.route.n_own = n;
    for (int32_t t = 0; t < rows; ++t) {
      r.expert().row<int32_t>(t)[0] = t % experts;
      r.expert().row<int32_t>(t)[1] = (t + 3) % experts;
    }
    ThreadPool pool(1);
    checked_ops(Dtype::f32, pool)->group(r.route, {views, row_adapter, {}});
    ASSERT_EQ(r.route.groups().begin.size(), size_t(n) + 1);
    int64_t own = 0;
    for (int32_t t = 0; t < rows; ++t) {
      for (int32_t j = 0; j < k; ++j) {
        const int32_t group = r.expert().row<int32_t>(t)[j] - first;
        const int32_t at = r.slot().row<int32_t>(t)[j];
        if (group < 0 || group >= n) {
          ASSERT_EQ(at, -1);
          continue;
        }
        ++own;
        ++found[size_t(t * k + j)];
        ASSERT_EQ(r.source().row<int32_t>(0)[at], t);
        ASSERT_TRUE(r.begin().row<int32_t>(0)[group] <= at &&
                    at < r.begin().row<int32_t>(0)[group + 1]);
      }
    }
    ASSERT_EQ(r.route.n_rows(), own);
    for (const LoraSegment& s : r.route.segments()) {
      ASSERT_TRUE(s.group >= 0 && s.group < n && s.end <= own);
      for (int32_t i = s.begin; i < s.end; ++i) {
        ASSERT_EQ(row_adapter[size_t(r.source().row<int32_t>(0)[i])], s.adapter);
      }
    }
  }
  EXPECT_EQ(std::count(found.begin(), found.end(), 1), rows * k);
}

}  // namespace
}  // namespace lorry::test
