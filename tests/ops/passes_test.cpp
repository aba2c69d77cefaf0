// Operations that a backend may do in one pass: the bits are those of their parts, one after the
// other.
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "ops/route_support.h"
#include "ops/support.h"

namespace lorry::test {
namespace {

class PassesTest : public testing::TestWithParam<Dtype> {
 protected:
  // f(ops) by every variant.
  template <class F>
  void with_each(F&& f) const {
    ThreadPool pool(2);
    for (const Variant& v : variants()) {
      SCOPED_TRACE(v.name);
      f(*checked_ops(GetParam(), pool, v));
    }
  }
};

// The keys and values of a layer with their memory, of zeros.
struct OwnedCache {
  OwnedCache(const Ops& ops, int64_t blocks, const AttentionSpec& spec)
      : shape(ops.kv_layout(blocks, spec)),
        k(bytes()),
        v(bytes()),
        kv{with(k.data()), with(v.data())} {}
  size_t bytes() const { return static_cast<size_t>(shape.shape.size() * size_of(shape.dtype)); }
  Tensor with(std::byte* data) const {
    Tensor t = shape;
    t.data = data;
    return t;
  }
  Bytes all() const {
    Bytes b(k.data(), k.data() + bytes());
    b.insert(b.end(), v.data(), v.data() + bytes());
    return b;
  }
  Tensor shape;
  Buffer k, v;
  KvLayer kv;
};

TEST_P(PassesTest, rope_write_has_the_bits_of_clamp_rope_and_kv_write) {
  const std::vector<int32_t> slots{3, 47, -1, 16, 0, 1, 7, 8, 9, 10, 12, 13};
  const auto n = static_cast<int64_t>(slots.size());
  const Tensor slot = view(const_cast<int32_t*>(slots.data()), Dtype::i32, {n});
  for (const int32_t d : {6, 16, 66, 96, 128, 256}) {
    for (const KvFormat format : {KvFormat::act, KvFormat::int8}) {
      const AttentionSpec spec{.heads = 6, .kv_heads = 2, .head_dim = d, .kv = format};
      const int64_t q = int64_t{spec.heads} * d;
      const int64_t k = int64_t{spec.kv_heads} * d;
      const Matrix cos = random_matrix(Dtype::f32, n, d / 2, 1);
      const Matrix sin = random_matrix(Dtype::f32, n, d / 2, 2);
      with_each([&](Ops& ops) {
        for (const float limit : {0.5F, std::numeric_limits<float>::infinity()}) {
          const Matrix parts = random_matrix(Dtype::f32, n, q + 2 * k, 7);
          const Matrix whole = random_matrix(Dtype::f32, n, q + 2 * k, 7);
          const OwnedCache expected(ops, 3, spec);
          const OwnedCache cache(ops, 3, spec);
          ops.clamp(parts(), limit);
          ops.rope(columns(parts(), 0, q + k), cos(), sin());
          ops.kv_write(expected.kv, columns(parts(), q, k), columns(parts(), q + k, k), slot, spec);
          ops.rope_write(cache.kv, whole(), limit, cos(), sin(), slot, spec);
          EXPECT_TRUE(bytes_of(columns(whole(), 0, q)) == bytes_of(columns(parts(), 0, q))) << d;
          EXPECT_TRUE(cache.all() == expected.all()) << d << ", limit " << limit;
        }
      });
    }
  }
}

struct DispatchCase {
  int32_t rows, experts, k, adapters, first_own, n_own;
};

// What a route holds, as far as it means something.
Bytes bytes_of_route(const OwnedRoute& r) {
  Bytes all = bytes_of(r.expert());
  append(all, bytes_of(r.weight()));
  append(all, bytes_of(r.slot()));
  append(all, bytes_of(r.route.begin));
  append(all, bytes_of(columns(r.source(), 0, r.route.n_rows())));
  const auto segments = std::as_bytes(r.route.segments());
  all.insert(all.end(), segments.begin(), segments.end());
  return all;
}

TEST_P(PassesTest, dispatch_has_the_bits_of_route_group_and_gather) {
  std::mt19937 random(3);
  for (const DispatchCase& c : {DispatchCase{1, 8, 2, 0, 0, 0}, DispatchCase{16, 8, 2, 16, 0, 0},
                                DispatchCase{33, 16, 4, 3, 0, 0}, DispatchCase{64, 40, 4, 2, 0, 0},
                                DispatchCase{5, 3, 1, 2, 1, 2}, DispatchCase{70, 6, 4, 5, 2, 3},
                                DispatchCase{9, 70, 3, 0, 0, 0}}) {
    const Matrix scores = random_matrix(Dtype::f32, c.rows, c.experts, 5, 2.0);
    const Matrix x = random_matrix(GetParam(), c.rows, 40, 6);
    std::vector<int32_t> row_adapter;
    for (int32_t t = 0; t < c.rows; ++t) {
      row_adapter.push_back(int32_t(random() % unsigned(c.adapters + 1)) - 1);
    }
    const std::vector<AdapterView> views(static_cast<size_t>(c.adapters));
    const LoraPlan plan{views, row_adapter, {}};
    const auto own = [&](OwnedRoute& r) {
      r.route.first_own = c.first_own;
      r.route.n_own = c.n_own;
      r.route.begin.shape = {r.route.groups_count() + 1};
    };
    with_each([&](Ops& ops) {
      OwnedRoute parts(c.rows, c.experts, c.k);
      OwnedRoute whole(c.rows, c.experts, c.k);
      own(parts);
      own(whole);
      ops.route(parts.route, scores(), {c.k, 1.0F});
      ops.group(parts.route, plan);
      const int64_t n = parts.route.n_rows();
      const Matrix expected(GetParam(), int64_t{c.rows} * c.k, 40);
      ops.gather(rows(expected(), 0, n), x(), view(parts.source.data(), Dtype::i32, {n}));
      const Matrix y(GetParam(), int64_t{c.rows} * c.k, 40);
      ops.dispatch(whole.route, y(), x(), scores(), {c.k, 1.0F}, plan);
      EXPECT_TRUE(bytes_of_route(whole) == bytes_of_route(parts)) << c.rows << " rows";
      EXPECT_TRUE(bytes_of(rows(y(), 0, n)) == bytes_of(rows(expected(), 0, n))) << c.rows;
    });
  }
}

TEST_P(PassesTest, combine_norm_has_the_bits_of_combine_and_add_norm) {
  const int64_t n = 6;
  for (const int32_t k : {1, 2, 3, 4}) {
    for (const int64_t dim : {5, 64, 1030, 3000, 6144, 8000, 9001}) {
      OwnedRoute r(n, 8, k);
      for (int64_t t = 0; t < n; ++t) {
        for (int32_t j = 0; j < k; ++j) {
          r.slot().row<int32_t>(t)[j] = (t + j) % 4 == 3 ? -1 : static_cast<int32_t>(t * k + j);
          r.weight().row<float>(t)[j] = 0.1F * static_cast<float>(1 + t + j);
        }
      }
      const Matrix d = random_matrix(Dtype::f32, n * k, dim, 4);
      const Matrix weight = random_matrix(Dtype::f32, 1, dim, 5);
      const Norm norm{view(weight.data(), Dtype::f32, {dim}), 1e-5F, k == 3};
      with_each([&](Ops& ops) {
        const Matrix x = random_matrix(Dtype::f32, n, dim, 6);
        const Matrix sum = random_matrix(Dtype::f32, n, dim, 6);
        const Matrix z(Dtype::f32, n, dim);
        const Matrix y(GetParam(), n, dim, 2);
        const Matrix expected(GetParam(), n, dim);
        const Tensor part = z();
        ops.combine(z(), d(), r.route);
        ops.add_norm(expected(), sum(), {&part, 1}, norm);
        ops.combine_norm(y(), x(), z(), d(), r.route, norm);
        EXPECT_TRUE(bytes_of(x()) == bytes_of(sum())) << k << " of " << dim;
        EXPECT_TRUE(bytes_of(y()) == bytes_of(expected())) << k << " of " << dim;
      });
    }
  }
}

// Decode: a few rows of each expert, without adapters.
TEST_P(PassesTest, apply_glu_of_few_rows_has_the_bits_of_linear_and_glu) {
  const int64_t in = 300;
  const int64_t out = 100;
  std::vector<Matrix> weights;
  std::vector<Tensor> groups;
  for (unsigned g = 0; g < 3; ++g) weights.push_back(random_matrix(Dtype::f32, 256, in, 30 + g));
  for (const Matrix& m : weights) groups.push_back(m());
  for (const std::vector<int32_t>& begin :
       {std::vector<int32_t>{0, 1, 1, 2}, {0, 0, 11, 12}, {0, 8, 17, 22}}) {
    const Matrix x = random_matrix(GetParam(), begin.back(), in, 5);
    with_each([&](Ops& ops) {
      const PackedWeight w(ops, groups, 256, in);
      const Matrix both(Dtype::f32, begin.back(), 256);
      const Matrix expected(GetParam(), begin.back(), out);
      const Matrix y(GetParam(), begin.back(), out, 3);
      ops.linear(both(), x(), w(), {begin}, {});
      ops.glu(expected(), both(), Activation::silu);
      ops.apply_glu(y(), both(), x(), {w(), {begin}, {}, {}, {}, {}, {}}, Activation::silu);
      EXPECT_TRUE(bytes_of(y()) == bytes_of(expected())) << begin.back() << " rows";
    });
  }
}

// Small whole numbers, so that several outputs have the largest value; rows that are broken, or 0.
TEST_P(PassesTest, apply_best_finds_the_first_of_the_largest) {
  constexpr int64_t kIn = 24;
  const auto whole_numbers = [](const Tensor& t, double scale) {
    for (int64_t r = 0; r < t.rows(); ++r) {
      for (int64_t c = 0; c < t.cols(); ++c) set(t, r, c, std::rint(scale * get(t, r, c)));
    }
  };
  for (const int64_t out : {5, 64, 130, 1000, 2300}) {
    const Matrix weight = random_matrix(Dtype::f32, out, kIn, 8);
    whole_numbers(weight(), 1.0);
    for (const int32_t n : {1, 3, 12, 70, 400}) {
      if (n > 100 && out > 200) continue;
      const Matrix x = random_matrix(GetParam(), n, kIn, 9);
      whole_numbers(x(), 1.5);
      const std::vector<int32_t> begin{0, n};
      if (n > 8) {
        for (int64_t c = 0; c < kIn; ++c) set(x(), 2, c, 0.0);
        set(x(), 4, 3, std::nan(""));
        set(x(), 5, 7, HUGE_VAL);
        set(x(), n - 1, 0, -HUGE_VAL);
      }
      with_each([&](Ops& ops) {
        const PackedWeight w(ops, {weight()}, out, kIn);
        const Matrix room(Dtype::u8, 1, static_cast<int64_t>(ops.linear_scratch_bytes(n, kIn)));
        const Matrix expected(Dtype::f32, n, out);
        const Matrix y(Dtype::f32, n, out, 3);
        std::vector<int32_t> best(static_cast<size_t>(n), 77);
        ops.linear(expected(), x(), w(), {begin}, room());
        ops.apply_best(view(best.data(), Dtype::i32, {n}), y(), x(),
                       {w(), {begin}, {}, {}, {}, room(), {}});
        EXPECT_TRUE(bytes_of(y()) == bytes_of(expected())) << n << " rows of " << out;
        for (int64_t r = 0; r < n; ++r) {
          EXPECT_EQ(best[static_cast<size_t>(r)], place_of_best(expected(), r)) << r << " of " << n;
        }
        if (n <= 8) return;
        EXPECT_EQ(best[2], 0) << "of " << out;
        EXPECT_EQ(best[4], -1) << "of " << out;
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Act, PassesTest, testing::ValuesIn(kActs),
                         [](const auto& test) { return to_string(test.param); });

}  // namespace
}  // namespace lorry::test
