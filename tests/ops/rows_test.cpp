// The operations that work row by row, against the formula in double.
#include <array>
#include <bit>
#include <numeric>
#include <span>

#include <gtest/gtest.h>

#include "ops/support.h"

namespace lorry::test {
namespace {

class RowsTest : public testing::TestWithParam<Dtype> {
 protected:
  // Half a unit in the last place of act, and the error of f32 arithmetic.
  static double tolerance(double x) {
    return std::abs(x) * std::max(2e-6, rounding(GetParam())) +
           (GetParam() == Dtype::f16 ? 0x1p-25 : 1e-30);
  }
};

TEST_P(RowsTest, embed_widens_the_rows_of_the_table) {
  const Matrix table = random_matrix(GetParam(), 9, 37, 1);
  std::vector<int32_t> ids{3, 0, 8, 3};
  const Matrix y(Dtype::f32, 4, 37, 2);
  same_everywhere(GetParam(), [&](Ops& ops) {
    ops.embed(y(), table(), view(ids.data(), Dtype::i32, {4}));
    return bytes_of(y());
  });
  for (int64_t r = 0; r < 4; ++r) {
    for (int64_t c = 0; c < 37; ++c) {
      ASSERT_EQ(get(y(), r, c), get(table(), ids[static_cast<size_t>(r)], c));
    }
  }
}

TEST_P(RowsTest, norms) {
  for (const bool centered : {false, true}) {
    for (const int64_t n : {1, 15, 16, 70, 300, 2048, 5000, 7000}) {
      const Matrix x = random_matrix(Dtype::f32, 5, n, 2, 3.0);
      const Matrix weight = random_matrix(Dtype::f32, 1, n, 3);
      const Matrix y(GetParam(), 5, n, 1);
      const Norm norm{view(weight.data(), Dtype::f32, {n}), 1e-3F, centered};
      same_everywhere(GetParam(), [&](Ops& ops) {
        ops.norm(y(), x(), norm);
        return bytes_of(y());
      });
      for (int64_t r = 0; r < 5; ++r) {
        double mean = 0;
        double squares = 0;
        for (int64_t c = 0; c < n; ++c) mean += centered ? get(x(), r, c) / double(n) : 0.0;
        for (int64_t c = 0; c < n; ++c) squares += std::pow(get(x(), r, c) - mean, 2);
        const double factor = 1 / std::sqrt(squares / double(n) + 1e-3);
        for (int64_t c = 0; c < n; ++c) {
          const double w = get(weight(), 0, c);
          const double expected = (get(x(), r, c) - mean) * factor * w;
          // The mean is subtracted in f32.
          ASSERT_NEAR(get(y(), r, c), expected, tolerance(expected) + 2e-6 * factor * std::abs(w))
              << n << " " << centered;
        }
      }
    }
  }
}

TEST_P(RowsTest, add_silu_in_place_and_not) {
  for (const int64_t n : {1, 15, 16, 70, 300}) {
    const Matrix x = random_matrix(GetParam(), 5, n, 2, 2.0);
    const Matrix v = random_matrix(Dtype::f32, 5, n, 3, 4.0);
    const Matrix bias = random_matrix(Dtype::f32, 1, n, 4);
    const Matrix y(GetParam(), 5, n, 3);
    const Tensor b = view(bias.data(), Dtype::f32, {n});
    same_everywhere(GetParam(), [&](Ops& ops) {
      ops.add_silu(y(), x(), v(), b);
      return bytes_of(y());
    });
    for (int64_t r = 0; r < 5; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        const double z = get(v(), r, c) + get(bias(), 0, c);
        const double expected = get(x(), r, c) + z / (1 + std::exp(-z));
        ASSERT_NEAR(get(y(), r, c), expected, tolerance(expected) + 1e-6) << n;
      }
    }
    ThreadPool pool(1);
    checked_ops(GetParam(), pool)->add_silu(x(), x(), v(), b);
    EXPECT_EQ(bytes_of(x()), bytes_of(y()));
  }
}

TEST_P(RowsTest, clamp_keeps_nan) {
  const Matrix x = random_matrix(Dtype::f32, 3, 50, 4, 5.0);
  same_everywhere(GetParam(), [&](Ops& ops) {
    fill(x(), 4, 5.0);
    ops.clamp(x(), 4.0F);
    return bytes_of(x());
  });
  const Matrix before = random_matrix(Dtype::f32, 3, 50, 4, 5.0);
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t c = 0; c < 50; ++c) {
      ASSERT_EQ(get(x(), r, c), std::clamp(get(before(), r, c), -4.0, 4.0));
    }
  }
  x().row<float>(1)[7] = std::nanf("");
  ThreadPool pool(1);
  checked_ops(GetParam(), pool)->clamp(x(), 4.0F);
  EXPECT_TRUE(std::isnan(x().row<float>(1)[7]));
}

TEST_P(RowsTest, rope_rotates_the_halves_of_each_head) {
  for (const int64_t half : {3, 8, 16, 40}) {
    const Matrix before = random_matrix(Dtype::f32, 4, 3 * 2 * half, 5);
    const Matrix x(Dtype::f32, 4, 3 * 2 * half, 1);
    const Matrix cos = random_matrix(Dtype::f32, 4, half, 6);
    const Matrix sin = random_matrix(Dtype::f32, 4, half, 7);
    same_everywhere(GetParam(), [&](Ops& ops) {
      fill(x(), 5);
      ops.rope(x(), cos(), sin());
      return bytes_of(x());
    });
    for (int64_t r = 0; r < 4; ++r) {
      for (int64_t c = 0; c < 3 * 2 * half; ++c) {
        const int64_t head = c / (2 * half) * 2 * half;
        const int64_t i = (c - head) % half;
        const double a = get(before(), r, head + i);
        const double b = get(before(), r, head + half + i);
        const double co = get(cos(), r, i);
        const double si = get(sin(), r, i);
        const double expected = c - head < half ? a * co - b * si : b * co + a * si;
        ASSERT_NEAR(get(x(), r, c), expected, 1e-6);
      }
    }
  }
}

double activate(Activation kind, double x) {
  if (kind == Activation::silu) return x / (1 + std::exp(-x));
  if (kind == Activation::gelu_erf) return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
  const double u = std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
  return x / (1 + std::exp(-2 * u));
}

TEST_P(RowsTest, glu_of_each_activation) {
  for (const Activation kind : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf}) {
    for (const int64_t f : {1, 64, 65, 200}) {
      const int64_t wide = 2 * ((f + 63) / 64 * 64);
      const Matrix gu = random_matrix(Dtype::f32, 3, wide, 8, 2.0);
      const Matrix y(GetParam(), 3, f, 3);
      same_everywhere(GetParam(), [&](Ops& ops) {
        ops.glu(y(), gu(), kind);
        return bytes_of(y());
      });
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t c = 0; c < f; ++c) {
          const double gate = get(gu(), r, c / 64 * 128 + c % 64);
          const double up = get(gu(), r, c / 64 * 128 + c % 64 + 64);
          const double expected = activate(kind, gate) * up;
          ASSERT_NEAR(get(y(), r, c), expected, tolerance(expected));
        }
      }
    }
  }
}

// The whole range of each activation, with up = 1.
TEST_P(RowsTest, activations_are_accurate_everywhere) {
  const int64_t n = 128 * 64;
  const Matrix gu(Dtype::f32, 1, 2 * n);
  for (int64_t c = 0; c < n; ++c) {
    set(gu(), 0, c / 64 * 128 + c % 64, -12.0 + 24.0 * double(c) / double(n - 1));
    set(gu(), 0, c / 64 * 128 + c % 64 + 64, 1.0);
  }
  const Matrix y(GetParam(), 1, n);
  ThreadPool pool(2);
  const auto ops = checked_ops(GetParam(), pool);
  for (const Activation kind : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf}) {
    ops->glu(y(), gu(), kind);
    for (int64_t c = 0; c < n; ++c) {
      const double x = get(gu(), 0, c / 64 * 128 + c % 64);
      const double expected = activate(kind, x);
      // gelu_tanh's exponent grows with the cube of x, and with it the error of rounding it.
      const double slack = kind == Activation::gelu_tanh ? 1e-6 * std::abs(x * x * x) : 0.0;
      ASSERT_NEAR(get(y(), 0, c), expected, tolerance(expected) + slack * std::abs(expected))
          << "kind " << int(kind) << " of " << x;
    }
  }
  // Far out: 0 on the left, x on the right, never NaN.
  for (const double far : {-1e30, -200.0, -90.0, 90.0, 200.0, 1e18}) {
    set(gu(), 0, 0, far);
    for (const Activation kind : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf}) {
      ops->glu(y(), gu(), kind);
      const double expected = far > 0 ? rounded(GetParam(), far) : 0.0;  // f16: may be infinite
      ASSERT_TRUE(get(y(), 0, 0) == expected || std::abs(get(y(), 0, 0) - expected) <= 1e-7)
          << "kind " << int(kind) << " of " << far << ": " << get(y(), 0, 0);
    }
  }
}

TEST_P(RowsTest, gather_combine_and_add) {
  const Matrix x = random_matrix(GetParam(), 6, 35, 9);
  std::vector<int32_t> index{5, 0, 0, 2};
  const Matrix y(GetParam(), 4, 35, 1);
  const Matrix d = random_matrix(Dtype::f32, 8, 35, 10);
  std::vector<int32_t> slot{3, 0, 7, 6, 5, 1};
  std::vector<float> weight{0.25F, 0.5F, 0.25F, 0.1F, 0.2F, 0.7F};
  Route route;
  route.slot = view(slot.data(), Dtype::i32, {2, 3});
  route.weight = view(weight.data(), Dtype::f32, {2, 3});
  const Matrix sum(Dtype::f32, 2, 35, 4);
  const Matrix total(Dtype::f32, 2, 35);
  same_everywhere(GetParam(), [&](Ops& ops) {
    ops.gather(y(), x(), view(index.data(), Dtype::i32, {4}));
    ops.combine(sum(), d(), route);
    fill(total(), 11);
    ops.add(total(), std::array{sum()});
    Bytes all = bytes_of(y());
    append(all, bytes_of(sum()));
    append(all, bytes_of(total()));
    return all;
  });
  const Matrix before(Dtype::f32, 2, 35);
  fill(before(), 11);
  for (int64_t c = 0; c < 35; ++c) {
    for (size_t r = 0; r < 4; ++r) {
      ASSERT_EQ(get(y(), int64_t(r), c), get(x(), index[r], c));
    }
    for (size_t r = 0; r < 2; ++r) {
      double expected = 0;
      for (size_t j = 0; j < 3; ++j) {
        expected += double{weight[3 * r + j]} * get(d(), slot[3 * r + j], c);
      }
      ASSERT_NEAR(get(sum(), int64_t(r), c), expected, 1e-6);
      ASSERT_EQ(get(total(), int64_t(r), c),
                double{float(get(before(), int64_t(r), c)) + float(get(sum(), int64_t(r), c))});
    }
  }
}

// Parts of several ranks; a device computes alone.
TEST_P(RowsTest, parts_are_added_up_in_their_order_before_x) {
  for (const int64_t n : {1, 35, 1024, 2100}) {
    for (size_t n_parts = 1; n_parts <= 3; ++n_parts) {
      const Matrix a = random_matrix(Dtype::f32, 3, n, 1);
      const Matrix b = random_matrix(Dtype::f32, 3, n, 2);
      const Matrix c = random_matrix(Dtype::f32, 3, n, 3);
      const std::array<Tensor, 3> parts{a(), b(), c()};
      const Matrix weight = random_matrix(Dtype::f32, 1, n, 4);
      const Norm norm{view(weight.data(), Dtype::f32, {n}), 1e-3F, false};
      const Matrix x(Dtype::f32, 3, n, 2), y(GetParam(), 3, n, 1);
      const Matrix x_alone(Dtype::f32, 3, n), y_alone(GetParam(), 3, n);
      bool alone = false;
      same_everywhere(GetParam(), [&](Ops& ops) {
        alone = ops.memory() != nullptr && n_parts > 1;
        if (alone) return Bytes{};
        fill(x(), 11);
        fill(x_alone(), 11);
        ops.add_norm(y(), x(), std::span(parts).first(n_parts), norm);
        ops.add(x_alone(), std::span(parts).first(n_parts));
        ops.norm(y_alone(), x_alone(), norm);
        EXPECT_EQ(bytes_of(x()), bytes_of(x_alone()));
        EXPECT_EQ(bytes_of(y()), bytes_of(y_alone()));
        return bytes_of(y());
      });
      if (alone) continue;
      const Matrix before(Dtype::f32, 3, n);
      fill(before(), 11);
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t i = 0; i < n; ++i) {
          auto sum = static_cast<float>(get(a(), r, i));
          for (size_t p = 1; p < n_parts; ++p) sum += static_cast<float>(get(parts[p], r, i));
          ASSERT_EQ(get(x(), r, i), double{static_cast<float>(get(before(), r, i)) + sum});
        }
      }
    }
  }
}

// What another rank has is left to it: no row of the embedding, no sorted row of an expert.
TEST_P(RowsTest, rows_that_are_not_here_add_nothing) {
  const Matrix table = random_matrix(GetParam(), 4, 35, 1);
  const Matrix y(Dtype::f32, 3, 35, 2);
  std::vector<int32_t> ids{2, -1, 0};
  const Matrix d = random_matrix(Dtype::f32, 2, 35, 10);
  std::vector<int32_t> slot{-1, 1, -1, -1, 0, -1};
  std::vector<float> weight{0.25F, 0.75F, 0.5F, 0.5F, 0.125F, 0.875F};
  Route route;
  route.slot = view(slot.data(), Dtype::i32, {3, 2});
  route.weight = view(weight.data(), Dtype::f32, {3, 2});
  const Matrix sum(Dtype::f32, 3, 35, 4);
  same_everywhere(GetParam(), [&](Ops& ops) {
    ops.embed(y(), table(), view(ids.data(), Dtype::i32, {3}));
    ops.combine(sum(), d(), route);
    Bytes all = bytes_of(y());
    append(all, bytes_of(sum()));
    return all;
  });
  for (int64_t c = 0; c < 35; ++c) {
    ASSERT_EQ(get(y(), 0, c), get(table(), 2, c));
    ASSERT_EQ(get(y(), 1, c), 0);
    ASSERT_EQ(get(y(), 2, c), get(table(), 0, c));
    ASSERT_EQ(get(sum(), 0, c), double{0.75F * float(get(d(), 1, c))});
    ASSERT_EQ(get(sum(), 1, c), 0);
    ASSERT_EQ(get(sum(), 2, c), double{0.125F * float(get(d(), 0, c))});
  }
}

// Denormals are kept, ties go to even, what lies beyond 65,504 is infinite.
TEST(RowsOfF16, round_as_to_f16_does) {
  std::vector<float> values{0.0F, -0.0F, 65504.0F, 65519.99F, 65520.0F, -1e30F, INFINITY, NAN};
  std::mt19937 random(3);
  for (int exponent = -28; exponent <= 17; ++exponent) {
    for (int i = 0; i < 40; ++i) {
      // Of the bits behind those of f16 all, none, or the first alone: a tie.
      const auto u = static_cast<uint32_t>(random());
      const uint32_t last = i % 4 == 0 ? u & 0x1fffU : i % 4 == 1 ? 0U : 0x1000U;
      const uint32_t bits = (u & 0x807fe000U) | last | static_cast<uint32_t>(exponent + 127) << 23;
      values.push_back(std::bit_cast<float>(bits));
    }
  }
  const auto n = static_cast<int64_t>(values.size());
  const Matrix ones(Dtype::f32, 1, n);
  for (int64_t c = 0; c < n; ++c) set(ones(), 0, c, 1.0);
  const Matrix y(Dtype::f16, 1, n, 1);
  const Tensor weight = view(values.data(), Dtype::f32, {n});
  same_everywhere(Dtype::f16, [&](Ops& ops) {
    ops.norm(y(), ones(), {.weight = weight, .eps = 0.0F});  // 1 / 1 times the weight
    return bytes_of(y());
  });
  for (int64_t c = 0; c < n; ++c) {
    const f16 expected = to_f16(values[static_cast<size_t>(c)]);
    if (std::isnan(values[static_cast<size_t>(c)])) {
      ASSERT_TRUE(std::isnan(get(y(), 0, c)));
    } else {
      ASSERT_EQ(y().row<f16>(0)[c].bits, expected.bits) << values[static_cast<size_t>(c)];
    }
  }
}

TEST(RowsOfF16, widen_as_to_float_does) {
  const Matrix table(Dtype::f16, 1 << 12, 16);
  for (int64_t i = 0; i < 1 << 16; ++i)
    table().row<f16>(i / 16)[i % 16].bits = static_cast<uint16_t>(i);
  std::vector<int32_t> ids(1 << 12);
  std::iota(ids.begin(), ids.end(), 0);
  const Matrix y(Dtype::f32, 1 << 12, 16);
  ThreadPool pool(2);
  for (const Variant& v : variants()) {
    checked_ops(Dtype::f16, pool, v)->embed(y(), table(), view(ids.data(), Dtype::i32, {1 << 12}));
    for (int64_t i = 0; i < 1 << 16; ++i) {
      const float expected = to_float(f16{static_cast<uint16_t>(i)});
      const float got = y().row<const float>(i / 16)[i % 16];
      ASSERT_TRUE(std::bit_cast<uint32_t>(got) == std::bit_cast<uint32_t>(expected) ||
                  (std::isnan(got) && std::isnan(expected)))
          << v.name << ": " << i;
    }
  }
}

TEST(CheckedRows, ids_out_of_range_abort) {
  ThreadPool pool(1);
  const auto ops = checked_ops(Dtype::f32, pool);
  const Matrix table = random_matrix(Dtype::f32, 4, 8, 1);
  const Matrix y(Dtype::f32, 1, 8);
  std::vector<int32_t> ids{4};
  EXPECT_DEATH(ops->embed(y(), table(), view(ids.data(), Dtype::i32, {1})), "ids\\[0\\] = 4");
}

INSTANTIATE_TEST_SUITE_P(Act, RowsTest, testing::ValuesIn(kActs),
                         [](const auto& test) { return to_string(test.param); });

}  // namespace
}  // namespace lorry::test
