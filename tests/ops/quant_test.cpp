// Linears with quantised weights, against the documented arithmetic, bit for bit.
#include <array>

#include <gtest/gtest.h>

#include "ops/quant_support.h"

namespace lorry::test {
namespace {

class QuantTest : public testing::TestWithParam<std::tuple<Dtype, WeightFormat>> {
 protected:
  Dtype act() const { return std::get<0>(GetParam()); }
  WeightFormat format() const { return std::get<1>(GetParam()); }
  bool ordered() const { return format().kind != Kind::fp8; }
};

std::vector<int32_t> random_order(int64_t in, unsigned seed) {
  std::vector<int32_t> order(static_cast<size_t>(in));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  return order;
}

// Values, not bits: 0 and -0 are equal.
void expect_equal(const Tensor& y, const Tensor& expected) {
  for (int64_t r = 0; r < y.rows(); ++r) {
    for (int64_t o = 0; o < y.cols(); ++o) {
      ASSERT_EQ(get(y, r, o), get(expected, r, o)) << "row " << r << " output " << o;
    }
  }
}

TEST_P(QuantTest, equals_the_documented_arithmetic_on_every_instruction_set) {
  struct Case {
    int64_t rows, out, in;
  };
  ThreadPool pool(1);
  const auto reference = checked_ops(act(), pool, best_portable_variant());
  unsigned seed = 1;
  for (const Case& c :
       {Case{1, 64, 64}, Case{1, 1, 1}, Case{2, 65, 3}, Case{3, 130, 37}, Case{4, 16, 33},
        Case{5, 16, 129}, Case{6, 128, 160}, Case{7, 63, 50}, Case{8, 100, 31}, Case{9, 20, 255},
        Case{13, 48, 128}, Case{19, 90, 7}, Case{25, 70, 300}, Case{31, 64, 9}, Case{33, 130, 192},
        Case{48, 64, 1153}, Case{70, 97, 256}}) {
    for (const bool order : {false, true}) {
      if (order && !ordered()) continue;
      SCOPED_TRACE(testing::Message()
                   << c.rows << " x [" << c.out << ", " << c.in << "], order: " << order);
      const Matrix x = random_matrix(act(), c.rows, c.in, ++seed);
      const QuantValues w(format(), c.out, c.in, ++seed);
      const std::vector<int32_t> inputs =
          order ? random_order(c.in, ++seed) : std::vector<int32_t>{};
      Matrix y(Dtype::f32, c.rows, c.out, 5);
      same_everywhere(
          act(),
          [&](Ops& ops) {
            fill(y(), 0);
            QuantWeight packed(ops, format(), 1, c.out, c.in);
            packed().order = order ? inputs.data() : nullptr;
            packed.pack(ops, 0, w);
            EXPECT_TRUE(packed.guarded());
            run_linear(ops, y(), x(), packed(), {0, static_cast<int32_t>(c.rows)});
            return bytes_of(y());
          },
          ordered());
      expect_equal(y(), expected_linear(*reference, in_order(x(), inputs)(), w)());
      // Nothing was written between the rows.
      for (int64_t r = 0; r < c.rows; ++r) {
        for (int64_t i = 0; i < 5; ++i) ASSERT_TRUE(std::isnan(y().row<float>(r)[c.out + i]));
      }
    }
  }
}

TEST_P(QuantTest, each_group_uses_its_own_weights_and_order) {
  const std::vector<int32_t> begin{0, 0, 3, 3, 10, 11, 11};
  constexpr int64_t kIn = 70;
  std::vector<QuantValues> w;
  std::vector<int32_t> order;
  for (unsigned g = 0; g < 6; ++g) {
    w.emplace_back(format(), 72, kIn, 100 + g);
    for (const int32_t i : random_order(kIn, g)) order.push_back(i);
  }
  const Matrix x = random_matrix(act(), 11, kIn, 7);
  const Matrix y(Dtype::f32, 11, 72);
  same_everywhere(
      act(),
      [&](Ops& ops) {
        QuantWeight packed(ops, format(), 6, 72, kIn);
        if (ordered()) packed().order = order.data();
        for (size_t g = 0; g < 6; ++g) packed.pack(ops, static_cast<int64_t>(g), w[g]);
        run_linear(ops, y(), x(), packed(), begin);
        return bytes_of(y());
      },
      ordered());
  ThreadPool pool(1);
  const auto ops = checked_ops(act(), pool, best_portable_variant());
  for (size_t g = 0; g < 6; ++g) {
    const int32_t n = begin[g + 1] - begin[g];
    if (n == 0) continue;
    const auto first = order.begin() + static_cast<int64_t>(g) * kIn;
    const std::vector<int32_t> own =
        ordered() ? std::vector<int32_t>(first, first + kIn) : std::vector<int32_t>{};
    const Matrix rows_of = in_order(rows(x(), begin[g], n), own);
    expect_equal(rows(y(), begin[g], n), expected_linear(*ops, rows_of(), w[g])());
  }
}

// Few and many rows, for which there are different kernels, and groups that are far from the
// others.
TEST_P(QuantTest, groups_of_any_size_equal_the_documented_arithmetic) {
  struct Case {
    int64_t out, in;
    std::vector<int32_t> begin;
  };
  ThreadPool pool(2);
  const auto ops = checked_ops(act(), pool, best_portable_variant());
  unsigned seed = 20;
  // 2,432 inputs: more scales of 128 than are summed at once, all whole. 6,400: so many that those
  // of two row blocks are enough to hold.
  for (const Case& c :
       {Case{36, 1100, {0, 1}}, Case{36, 2432, {0, 0, 2, 2, 3}}, Case{20, 1100, {0, 9, 9, 26}},
        Case{33, 2432, {0, 17}}, Case{36, 700, {0, 40, 40, 41}}, Case{140, 300, {0, 66, 70}},
        Case{140, 300, {0, 5, 5, 9}}, Case{340, 6400, {0, 1}}, Case{360, 1100, {0, 3}},
        Case{140, 2432, {0, 20, 20, 23}}, Case{36, 1280, {0, 0, 130, 133}},
        Case{20, 1100, {0, 130}}}) {
    const auto groups = static_cast<int64_t>(c.begin.size()) - 1;
    SCOPED_TRACE(testing::Message() << c.in << " inputs, " << groups << " groups");
    const Matrix x = random_matrix(act(), c.begin.back(), c.in, ++seed);
    const Matrix y(Dtype::f32, c.begin.back(), c.out);
    QuantWeight packed(*ops, format(), groups, c.out, c.in);
    std::vector<QuantValues> w;
    std::vector<int32_t> order;
    for (int64_t g = 0; g < groups; ++g) {
      w.emplace_back(format(), c.out, c.in, ++seed);
      for (const int32_t i : random_order(c.in, seed)) order.push_back(i);
    }
    packed().order = ordered() ? order.data() : nullptr;
    for (int64_t g = 0; g < groups; ++g) packed.pack(*ops, g, w[static_cast<size_t>(g)]);
    run_linear(*ops, y(), x(), packed(), c.begin);
    for (int64_t g = 0; g < groups; ++g) {
      const auto at = static_cast<size_t>(g);
      const int32_t n = c.begin[at + 1] - c.begin[at];
      if (n == 0) continue;
      const auto first = order.begin() + g * c.in;
      const std::vector<int32_t> own =
          ordered() ? std::vector<int32_t>(first, first + c.in) : std::vector<int32_t>{};
      const Matrix of = in_order(rows(x(), c.begin[at], n), own);
      expect_equal(rows(y(), c.begin[at], n), expected_linear(*ops, of(), w[at])());
    }
  }
}

TEST_P(QuantTest, long_rows_and_many_rows_equal_the_documented_arithmetic) {
  ThreadPool pool(2);
  const auto ops = checked_ops(act(), pool, best_portable_variant());
  const Matrix x = random_matrix(act(), 200, 2501, 3);
  const QuantValues w(format(), 66, 2501, 4);
  const Matrix y(Dtype::f32, 200, 66);
  QuantWeight packed(*ops, format(), 1, 66, 2501);
  packed.pack(*ops, 0, w);
  run_linear(*ops, y(), x(), packed(), {0, 200});
  expect_equal(y(), expected_linear(*ops, x(), w)());
}

TEST_P(QuantTest, a_row_has_the_same_bits_alone_and_among_others) {
  for (const Variant& v : variants()) {
    ThreadPool pool(2);
    const auto ops = checked_ops(act(), pool, v);
    // Any number of inputs, and whole pieces of 8, for which there are other kernels.
    for (const int64_t in : v.slow ? std::array{201, 424} : std::array{4111, 4104}) {
      const Matrix x = random_matrix(act(), 300, in, 8);
      QuantWeight packed(*ops, format(), 1, 80, in);
      packed.pack(*ops, 0, QuantValues(format(), 80, in, 9));
      const Matrix alone(Dtype::f32, 300, 80);
      for (int64_t r = 0; r < 32; ++r) {
        run_linear(*ops, rows(alone(), r, 1), rows(x(), r, 1), packed(), {0, 1});
      }
      for (const int32_t n : {2, 7, 12, 24, 32, 130, 300}) {
        if (v.slow && n > 130) continue;
        const Matrix y(Dtype::f32, n, 80);
        run_linear(*ops, y(), rows(x(), 0, n), packed(), {0, n});
        const int64_t same = std::min(n, 32);
        EXPECT_TRUE(bytes_of(rows(y(), 0, same)) == bytes_of(rows(alone(), 0, same)))
            << v.name << ", " << in << " inputs, " << n << " rows";
      }
    }
  }
}

// Whether y is NaN in row `nan` alone.
void expect_nan_row(const Tensor& y, int64_t nan) {
  for (int64_t r = 0; r < y.rows(); ++r) {
    for (int64_t o = 0; o < y.cols(); ++o) {
      ASSERT_EQ(std::isfinite(get(y, r, o)), r != nan) << "row " << r << " output " << o;
    }
  }
}

TEST_P(QuantTest, a_row_that_is_not_finite_gives_nan_and_changes_no_other) {
  const QuantValues w(format(), 70, 100, 4);
  for (const double bad : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
    for (const int64_t at : {0, 15, 98, 99}) {
      const Matrix x = random_matrix(act(), 9, 100, 3);
      ThreadPool pool(2);
      for (const Variant& v : variants()) {
        const auto ops = checked_ops(act(), pool, v);
        QuantWeight packed(*ops, format(), 1, 70, 100);
        packed.pack(*ops, 0, w);
        Matrix y(Dtype::f32, 9, 70);
        Matrix before(Dtype::f32, 9, 70);
        set(x(), 5, at, 1.0);
        run_linear(*ops, before(), x(), packed(), {0, 9});
        set(x(), 5, at, bad);
        run_linear(*ops, y(), x(), packed(), {0, 9});
        for (int64_t r = 0; r < 9; ++r) {
          if (r != 5) {
            EXPECT_TRUE(bytes_of(rows(y(), r, 1)) == bytes_of(rows(before(), r, 1)));
          }
        }
        if (act() != Dtype::f32 && format().kind != Kind::fp8) expect_nan_row(y(), 5);
      }
    }
  }
}

TEST_P(QuantTest, extreme_values_have_the_same_bits_on_every_instruction_set) {
  const Matrix x(act(), 12, 96);
  for (int64_t r = 0; r < 12; ++r) {
    // From denormal to the largest.
    fill(rows(x(), r, 1), static_cast<unsigned>(r),
         std::ldexp(1.0, -140 + 24 * static_cast<int>(r)));
  }
  fill(rows(x(), 11, 1), 0, 0.0);
  QuantValues w(format(), 66, 96, 5);
  for (size_t i = 0; i < w.scale.size(); ++i) {
    const int exponent =
        format().group == 0 ? static_cast<int>(i % 240) - 130 : static_cast<int>(i % 38) - 24;
    w.scale[i] = std::ldexp(i % 3 == 0 ? -1.0F : 1.0F, exponent);
  }
  const Matrix y(Dtype::f32, 12, 66);
  same_everywhere(
      act(),
      [&](Ops& ops) {
        QuantWeight packed(ops, format(), 1, 66, 96);
        packed.pack(ops, 0, w);
        run_linear(ops, y(), x(), packed(), {0, 12});
        // Which NaN it is (infinity - infinity) is the processor's choice.
        for (int64_t r = 0; r < 12; ++r) {
          for (int64_t c = 0; c < 66; ++c) {
            if (std::isnan(get(y(), r, c))) set(y(), r, c, 12345.0);
          }
        }
        return bytes_of(y());
      },
      ordered());
  for (int64_t c = 0; c < 66; ++c) EXPECT_EQ(get(y(), 11, c), 0);
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantTest,
                         testing::Combine(testing::ValuesIn(kActs), testing::ValuesIn(formats())),
                         [](const auto& test) {
                           return std::string(to_string(std::get<0>(test.param))) + "_" +
                                  name_of(std::get<1>(test.param));
                         });

TEST(QuantLinear, the_largest_sum_of_int8_is_exact) {
  const WeightFormat format{Kind::int8, 0, true};
  constexpr int64_t kIn = 65536;
  QuantValues w(format, 2, kIn, 1);
  std::fill(w.q.begin(), w.q.end(), 255);
  w.zero = {0, 255};
  w.scale = {1.0F, 1.0F};
  std::fill(w.q.begin() + kIn, w.q.end(), 0);
  const Matrix x(Dtype::bf16, 2, kIn);
  for (int64_t k = 0; k < kIn; ++k) {
    set(x(), 0, k, 127);
    set(x(), 1, k, -127);
  }
  const Matrix y(Dtype::f32, 2, 2);
  same_everywhere(
      Dtype::bf16,
      [&](Ops& ops) {
        QuantWeight packed(ops, format, 1, 2, kIn);
        packed.pack(ops, 0, w);
        run_linear(ops, y(), x(), packed(), {0, 2});
        return bytes_of(y());
      },
      true);
  const double sum = 255.0 * 127 * kIn;
  EXPECT_EQ(get(y(), 0, 0), static_cast<double>(static_cast<float>(sum)));
  EXPECT_EQ(get(y(), 0, 1), static_cast<double>(static_cast<float>(-sum)));
  EXPECT_EQ(get(y(), 1, 0), static_cast<double>(static_cast<float>(-sum)));
  EXPECT_EQ(get(y(), 1, 1), static_cast<double>(static_cast<float>(sum)));
}

}  // namespace
}  // namespace lorry::test
