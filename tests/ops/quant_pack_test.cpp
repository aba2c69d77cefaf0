// Quantising weights, their packed form, and reading it back.
#include <gtest/gtest.h>

#include "ops/quant_support.h"

namespace lorry::test {
namespace {

class QuantPackTest : public testing::TestWithParam<WeightFormat> {
 protected:
  WeightFormat format() const { return GetParam(); }
  int64_t group(int64_t in) const { return format().group == 0 ? in : format().group; }
};

// w packed and unpacked; the packed bytes must be the same everywhere.
Matrix round_trip(const WeightFormat& format, const Tensor& w) {
  Matrix y(Dtype::f32, w.rows(), w.cols());
  same_everywhere(Dtype::bf16, [&](Ops& ops) {
    QuantWeight packed(ops, format, 1, w.rows(), w.cols());
    packed.pack(ops, 0, w);
    EXPECT_TRUE(packed.guarded());
    ops.unpack(y(), packed(), 0, 0);
    return packed.bytes();
  });
  return y;
}

TEST_P(QuantPackTest, unpack_gives_what_was_packed_in_the_order_of_x) {
  constexpr int64_t kOut = 130;
  constexpr int64_t kIn = 203;
  ThreadPool pool(2);
  for (const Dtype act : kActs) {
    const auto ops = checked_ops(act, pool);
    std::vector<int32_t> order(2 * kIn);
    for (int64_t g = 0; g < 2; ++g) {
      std::iota(order.begin() + g * kIn, order.begin() + (g + 1) * kIn, 0);
      std::shuffle(order.begin() + g * kIn, order.begin() + (g + 1) * kIn,
                   std::mt19937(static_cast<unsigned>(g)));
    }
    QuantWeight packed(*ops, format(), 2, kOut, kIn);
    const bool ordered = format().kind != Kind::fp8;
    if (ordered) packed().order = order.data();
    const std::vector<QuantValues> w{{format(), kOut, kIn, 1}, {format(), kOut, kIn, 2}};
    for (size_t g = 0; g < 2; ++g) packed.pack(*ops, static_cast<int64_t>(g), w[g]);
    const Matrix y(Dtype::f32, 71, kIn);
    ops->unpack(y(), packed(), 1, 59);
    for (int64_t r = 0; r < 71; ++r) {
      for (int64_t k = 0; k < kIn; ++k) {
        const int64_t at = ordered ? order[static_cast<size_t>(kIn + k)] : k;
        const float scale = w[1].scale[static_cast<size_t>(r + 59)];
        const float value = w[1].plain(r + 59, k) * (format().kind == Kind::fp8 ? scale : 1.0F);
        ASSERT_EQ(y().row<float>(r)[at], value) << r << ", " << k;
      }
    }
  }
}

TEST_P(QuantPackTest, floats_are_rounded_to_the_nearest_value) {
  const Matrix w = random_matrix(Dtype::f32, 70, 301, 1, 0.02);
  const Matrix y = round_trip(format(), w());
  const int64_t n = group(301);
  for (int64_t r = 0; r < 70; ++r) {
    for (int64_t begin = 0; begin < 301; begin += n) {
      const int64_t end = std::min<int64_t>(301, begin + n);
      double most = 0;
      for (int64_t k = begin; k < end; ++k) most = std::max(most, std::abs(get(w(), r, k)));
      for (int64_t k = begin; k < end; ++k) {
        const double x = get(w(), r, k);
        const double step = format().kind == Kind::int8 ? most / 127
                            : format().kind == Kind::int4
                                ? most / 2 /* clipped at 7 / 9 */
                                : std::max(std::abs(x) / 8, most / 448 / 512);
        ASSERT_NEAR(get(y(), r, k), x, step * 0.5 * 1.001 + (format().group > 0 ? most / 4096 : 0));
      }
    }
  }
}

TEST_P(QuantPackTest, rows_of_zeros_stay_zero) {
  const Matrix w(Dtype::bf16, 66, 100);
  fill(w(), 1, 0.0);
  const Matrix y = round_trip(format(), w());
  for (int64_t r = 0; r < 66; ++r) {
    for (int64_t k = 0; k < 100; ++k) ASSERT_EQ(get(y(), r, k), 0);
  }
  ThreadPool pool(2);
  const auto ops = checked_ops(Dtype::bf16, pool);
  QuantWeight packed(*ops, format(), 1, 66, 100);
  packed.pack(*ops, 0, w());
  const Matrix x = random_matrix(Dtype::bf16, 3, 100, 2);
  const Matrix out(Dtype::f32, 3, 66);
  run_linear(*ops, out(), x(), packed(), {0, 3});
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t o = 0; o < 66; ++o) ASSERT_EQ(get(out(), r, o), 0);
  }
}

TEST_P(QuantPackTest, a_weight_that_is_not_finite_makes_its_output_nan) {
  ThreadPool pool(2);
  for (const Dtype act : kActs) {
    for (const Variant& v : variants()) {
      const auto ops = checked_ops(act, pool, v);
      const Matrix w = random_matrix(Dtype::f32, 70, 100, 1);
      set(w(), 5, 99, HUGE_VAL);
      set(w(), 64, 0, std::nan(""));
      QuantWeight packed(*ops, format(), 1, 70, 100);
      packed.pack(*ops, 0, w());
      const Matrix x = random_matrix(act, 3, 100, 2);
      const Matrix y(Dtype::f32, 3, 70);
      run_linear(*ops, y(), x(), packed(), {0, 3});
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t o = 0; o < 70; ++o) {
          ASSERT_EQ(std::isnan(get(y(), r, o)), o == 5 || o == 64) << v.name << " " << o;
        }
      }
    }
  }
}

TEST_P(QuantPackTest, extreme_weights_keep_what_the_scale_can_hold) {
  Matrix w(Dtype::f32, 12, 64);
  for (int r = 0; r < 12; ++r) {
    fill(rows(w(), r, 1), static_cast<unsigned>(r), std::ldexp(1.0, -140 + 24 * r));
  }
  const Matrix y = round_trip(format(), w());
  for (int64_t r = 0; r < 12; ++r) {
    for (int64_t k = 0; k < 64; ++k) ASSERT_TRUE(std::isfinite(get(y(), r, k))) << r << ", " << k;
  }
  if (format().group > 0) return;  // f16 scales
  for (const int64_t r : {2, 5, 10}) {
    for (int64_t k = 0; k < 64; ++k) {
      ASSERT_NEAR(get(y(), r, k), get(w(), r, k), std::ldexp(1.0, -140 + 24 * static_cast<int>(r)));
    }
  }
}

TEST_P(QuantPackTest, packs_from_each_source_type_and_in_the_order_of_x) {
  ThreadPool pool(2);
  const auto ops = checked_ops(Dtype::bf16, pool);
  const Matrix narrow = random_matrix(Dtype::bf16, 70, 90, 3);
  const Matrix half(Dtype::f16, 70, 90);
  const Matrix wide(Dtype::f32, 70, 90);
  const Matrix turned(Dtype::f32, 70, 90);
  std::vector<int32_t> order(90);
  for (int64_t k = 0; k < 90; ++k) order[static_cast<size_t>(k)] = static_cast<int32_t>(89 - k);
  for (int64_t r = 0; r < 70; ++r) {
    for (int64_t k = 0; k < 90; ++k) {
      set(wide(), r, k, get(narrow(), r, k));
      set(turned(), r, 89 - k, get(narrow(), r, k));
      half().row<f16>(r)[k] = to_f16(static_cast<float>(get(narrow(), r, k)));
    }
  }
  const auto packed_as = [&](const Tensor& w, const int32_t* inputs) {
    QuantWeight packed(*ops, format(), 1, 70, 90);
    packed().order = inputs;
    packed.pack(*ops, 0, w);
    return packed.bytes();
  };
  const Bytes expected = packed_as(wide(), nullptr);
  EXPECT_TRUE(packed_as(narrow(), nullptr) == expected);
  EXPECT_TRUE(packed_as(half(), nullptr) == expected);
  if (format().kind == Kind::fp8) return;
  EXPECT_TRUE(packed_as(turned(), order.data()) == expected);
}

// A part of packed rows has the bytes that it would have if it had been packed by itself.
TEST_P(QuantPackTest, parts_of_a_packed_weight_are_as_if_packed_alone) {
  constexpr int64_t kOut = 200, kIn = 3 * 128 + 43;
  ThreadPool pool(2);
  const auto ops = checked_ops(Dtype::bf16, pool);
  const QuantValues values(format(), kOut, kIn, 3);
  const int64_t unit = std::max(1, format().group);
  const auto part_of = [&](const Range& r, const Range& in) {
    const QuantRows all = values.rows_of(r.first, r.count);
    const int64_t first = format().group == 0 ? 0 : in.first / format().group;
    const int64_t scales = format().scales(in.count);
    return QuantRows{columns(all.q, in.first, in.count), columns(all.scale, first, scales),
                     format().zeros ? columns(all.zero, first, scales) : Tensor{}};
  };
  const std::vector<Range> inputs =
      format().group == 0
          ? std::vector<Range>{{0, kIn}, {0, 8}, {5, 1}, {16, 64}, {3, 206}, {209, kIn - 209}}
          : std::vector<Range>{{0, kIn}, {unit, unit}, {unit, kIn - unit}};
  for (const bool interleaved : {false, true}) {
    QuantWeight whole(*ops, format(), 2, interleaved ? 512 : kOut, kIn);
    if (interleaved) ops->pack(whole(), 1, 0, values.rows_of(0, kOut), true);
    ops->pack(whole(), 1, interleaved ? 64 : 0, values.rows_of(0, kOut), interleaved);
    for (const Range& r : {Range{0, kOut}, Range{64, 64}, Range{37, 101}}) {
      for (const Range& in : inputs) {
        QuantWeight part(*ops, format(), 1, r.count, in.count);
        QuantWeight alone(*ops, format(), 1, r.count, in.count);
        ops->pack(alone(), 0, 0, part_of(r, in));
        ops->pack(part(), 0, 0,
                  PackedRows{whole(), 1, interleaved ? 64 : 0, interleaved ? 128 : 64, r.first,
                             r.count, in.first});
        EXPECT_TRUE(part.guarded());
        EXPECT_TRUE(part.bytes() == alone.bytes())
            << r.first << " + " << r.count << ", inputs " << in.first << " + " << in.count;
      }
    }
  }
}

TEST_P(QuantPackTest, pack_matrix_packs_as_pack) {
  if (format().zeros) return;  // of floats none are made
  ThreadPool pool(2);
  const auto ops = checked_ops(Dtype::bf16, pool);
  const Matrix m = random_matrix(Dtype::bf16, 130, 203, 4);
  QuantWeight packed(*ops, format(), 1, 130, 203);
  QuantWeight alone(*ops, format(), 1, 130, 203);
  packed.pack(*ops, 0, m());
  ops->pack_matrix(alone().data, m(), format());
  EXPECT_TRUE(alone.guarded());
  EXPECT_TRUE(packed.bytes() == alone.bytes());
}

INSTANTIATE_TEST_SUITE_P(Formats, QuantPackTest, testing::ValuesIn(formats()),
                         [](const auto& test) { return name_of(test.param); });

TEST(QuantPack, int4_is_no_worse_than_the_plain_scale) {
  const WeightFormat format{Kind::int4, 128, false};
  const Matrix w = random_matrix(Dtype::f32, 64, 512, 4, 0.03);
  const Matrix y = round_trip(format, w());
  double ours = 0;
  double plain = 0;
  for (int64_t r = 0; r < 64; ++r) {
    for (int64_t begin = 0; begin < 512; begin += 128) {
      double largest = 0;
      for (int64_t k = begin; k < begin + 128; ++k) {
        const double x = get(w(), r, k);
        if (std::abs(x) > std::abs(largest)) largest = x;
      }
      double own = 0;
      double other = 0;
      const double scale = double{to_float(to_f16(static_cast<float>(largest / -8)))};
      for (int64_t k = begin; k < begin + 128; ++k) {
        const double x = get(w(), r, k);
        const double q = std::clamp(std::nearbyint(x / scale), -8.0, 7.0);
        own += std::pow(get(y(), r, k) - x, 2);
        other += std::pow(q * scale - x, 2);
      }
      EXPECT_LE(own, other * 1.0001);
      ours += own;
      plain += other;
    }
  }
  EXPECT_LT(ours, 0.9 * plain);
}

TEST(QuantPack, fp8_keeps_every_value_of_e4m3_and_rounds_to_even) {
  const Matrix w(Dtype::f32, 2, 256);
  for (int i = 0; i < 256; ++i) {
    const bool nan = (i & 0x7f) == 0x7f;
    const float value = nan ? 0.0F : e4m3(static_cast<uint8_t>(i));
    w().row<float>(0)[i] = value;
    // Half way to the next, upwards; 448 gives the scale 1.
    const float next = (i & 0x7f) >= 0x7e ? value : e4m3(static_cast<uint8_t>(i + 1));
    w().row<float>(1)[i] = (value + next) / 2;
  }
  const Matrix y = round_trip({Kind::fp8, 0, false}, w());
  for (int i = 0; i < 256; ++i) {
    ASSERT_EQ(y().row<float>(0)[i], w().row<float>(0)[i]) << i;
    if ((i & 0x7f) >= 0x7e) continue;
    const auto even = static_cast<uint8_t>(i + i % 2);
    ASSERT_EQ(y().row<float>(1)[i], e4m3(even)) << i;
  }
}

TEST(CheckedQuant, wrong_arguments_abort) {
  ThreadPool pool(1);
  const auto ops = checked_ops(Dtype::bf16, pool);
  EXPECT_DEATH(ops->weight_layout(1, 8, 64, {Kind::int8, 48, false}), "groups of 48");
  EXPECT_DEATH(ops->weight_layout(1, 8, 64, {Kind::fp8, 32, false}), "groups of 32");
  EXPECT_DEATH(ops->weight_layout(1, 8, 65537, {Kind::int8, 0, false}), "65537 inputs");
  const WeightFormat format{Kind::int4, 32, true};
  QuantWeight packed(*ops, format, 1, 8, 64);
  QuantValues w(format, 8, 64, 1);
  QuantRows without = w.rows_of(0, 8);
  without.zero = {};
  EXPECT_DEATH(ops->pack(packed(), 0, 0, without), "zero points");
  w.q[3] = 16;
  EXPECT_DEATH(ops->pack(packed(), 0, 0, w.rows_of(0, 8)), "above 15");
  const Matrix x = random_matrix(Dtype::bf16, 2, 64, 1);
  const Matrix y(Dtype::f32, 2, 8);
  const std::vector<int32_t> begin{0, 2};
  EXPECT_DEATH(ops->linear(y(), x(), packed(), {begin}, {}), "scratch");
  std::vector<int32_t> order(64, 1);
  packed().order = order.data();
  EXPECT_DEATH(run_linear(*ops, y(), x(), packed(), begin), "order\\[1\\] = 1");
}

}  // namespace
}  // namespace lorry::test
