// adapt and adapt_embedding: what patches do beside pairs, alone and together, on the rows of their
// adapter; pack_matrix and unpack.
#include <gtest/gtest.h>

#include "ops/support.h"

namespace lorry::test {
namespace {

class PatchTest : public testing::TestWithParam<Dtype> {};

// Everything that a patch of a linear [out, in] may have.
struct Parts {
  Parts(int64_t out, int64_t in, int32_t rank_of, unsigned seed)
      : weight(random_matrix(Dtype::f32, out, in, seed, 0.3)),
        a(random_matrix(Dtype::f32, rank_of, in, seed + 1, 0.3)),
        b(random_matrix(Dtype::f32, out, rank_of, seed + 2, 0.3)),
        gain(random_matrix(Dtype::f32, 1, (out + 63) / 64 * 64, seed + 3)),
        rank(rank_of) {}

  Matrix weight, a, b, gain;
  int32_t rank;
};

struct Patched {
  std::vector<Buffer> memory;
  SiteChange change;
  SitePatch patch;

  std::byte* take(size_t bytes) {
    memory.emplace_back(bytes);
    return memory.back().data();
  }
};

struct Use {
  bool weight, pair, gain;
};

void pack(Patched& p, const Parts& parts, const Use& use, const Ops& ops) {
  const int64_t out = parts.weight().rows();
  const int64_t in = parts.weight().cols();
  if (use.weight) {
    std::byte* to = p.take(static_cast<size_t>(ops.weight_layout(1, out, in).group_bytes));
    ops.pack_matrix(to, parts.weight());
    p.change.weight = to;
  }
  if (use.gain) p.change.gain = parts.gain().row<const float>(0);
  if (use.pair) {
    std::byte* a = p.take(ops.lora_a_bytes(parts.rank, in));
    std::byte* b = p.take(ops.lora_b_bytes(out, parts.rank));
    ops.pack_lora_a(a, parts.a());
    ops.pack_lora_b(b, parts.b());
    p.patch = {a, b, parts.rank, 0.75F, nullptr};
  }
  if (use.weight || use.gain) p.patch.change = &p.change;
}

// y = gain * (W x + scale B (A x)), W x being `before` where the weight stays.
double expected(const Parts& parts, const Use& use, const Tensor& x, int64_t r, int64_t o,
                double before) {
  double y = before;
  if (use.weight) {
    y = 0;
    for (int64_t i = 0; i < x.cols(); ++i) {
      y += rounded(x.dtype, get(parts.weight(), o, i)) * get(x, r, i);
    }
  }
  for (int64_t k = 0; use.pair && k < parts.rank; ++k) {
    double t = 0;
    for (int64_t i = 0; i < x.cols(); ++i)
      t += rounded(x.dtype, get(parts.a(), k, i)) * get(x, r, i);
    y += 0.75 * t * rounded(x.dtype, get(parts.b(), o, k));
  }
  return use.gain ? y * get(parts.gain(), 0, o) : y;
}

TEST_P(PatchTest, pack_matrix_packs_as_pack_and_unpack_reads_it_back) {
  ThreadPool pool(2);
  for (const Variant& v : variants()) {
    const auto ops = checked_ops(GetParam(), pool, v);
    const Matrix m = random_matrix(Dtype::f32, 150, 37, 3);
    const PackedWeight packed(*ops, {m(), m()}, 150, 37);
    Bytes alone(static_cast<size_t>(packed().group_bytes));
    ops->pack_matrix(alone.data(), m());
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), packed().data + packed().group_bytes));
    const Matrix y(Dtype::f32, 71, 37, 2);
    ops->unpack(y(), packed(), 1, 60);
    for (int64_t r = 0; r < 71; ++r) {
      for (int64_t c = 0; c < 37; ++c) {
        ASSERT_EQ(get(y(), r, c), rounded(GetParam(), get(m(), 60 + r, c)));
      }
    }
  }
}

// Two sites side by side, one adapter a segment, every combination of the three.
TEST_P(PatchTest, replaces_then_adds_then_multiplies) {
  const int64_t in = 45;
  const std::vector<LoraSite> sites{{.first = 0, .in = in, .out = 130, .column = 0},
                                    {.first = 1, .in = in, .out = 70, .column = 130}};
  const std::vector<Use> uses{{true, false, false}, {false, true, true},  {true, true, false},
                              {true, true, true},   {false, true, false}, {true, false, true}};
  const std::vector<LoraSegment> segments{{0, 1, 0},     {2, 5, 1},     {5, 105, 2},
                                          {105, 109, 3}, {109, 110, 4}, {110, 112, 5}};
  std::vector<Parts> parts;
  for (unsigned i = 0; i < 12; ++i) parts.emplace_back(i % 2 == 0 ? 130 : 70, in, 5, 10 * i + 1);
  const Matrix x = random_matrix(GetParam(), 113, in, 5);
  const Matrix y(Dtype::f32, 113, 200, 4);
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(113, 2, 16));
  same_everywhere(GetParam(), [&](Ops& ops) {
    std::vector<Patched> patched(12);
    std::vector<std::vector<SitePatch>> patches(6);
    std::vector<AdapterView> views;
    for (size_t a = 0; a < 6; ++a) {
      for (size_t s = 0; s < 2; ++s) {
        pack(patched[2 * a + s], parts[2 * a + s], uses[a], ops);
        patches[a].push_back(patched[2 * a + s].patch);
      }
      views.push_back({patches[a], false});
    }
    fill(y(), 6);
    ops.adapt(y(), x(), sites, segments, {views, {}, segments, false}, scratch());
    return bytes_of(y());
  });
  const Matrix before(Dtype::f32, 113, 200);
  fill(before(), 6);
  std::vector<int> adapter_of(113, -1);
  for (const LoraSegment& s : segments) {
    std::fill(adapter_of.begin() + s.begin, adapter_of.begin() + s.end, s.adapter);
  }
  for (int64_t r = 0; r < 113; ++r) {
    const int a = adapter_of[static_cast<size_t>(r)];
    for (int64_t c = 0; c < 200; ++c) {
      const double was = get(before(), r, c);
      const size_t site = c < 130 ? 0 : 1;
      const double want =
          a < 0 ? was
                : expected(parts[2 * static_cast<size_t>(a) + site], uses[static_cast<size_t>(a)],
                           x(), r, c - (site == 0 ? 0 : 130), was);
      ASSERT_NEAR(get(y(), r, c), want, 3e-5 * (1 + std::abs(want))) << r << " " << c;
    }
  }
}

// gate and up lie in turn, 64 columns each.
TEST_P(PatchTest, replaces_interleaved_experts) {
  const int64_t in = 24, out = 100;
  const std::vector<LoraSite> sites{
      {.first = 0, .group_stride = 1, .in = in, .out = out, .column = 0, .panel_stride = 128},
      {.first = 2, .group_stride = 1, .in = in, .out = out, .column = 64, .panel_stride = 128}};
  const std::vector<LoraSegment> segments{{0, 2, 0, 0}, {2, 9, 0, 1}};
  std::vector<Parts> parts;
  for (unsigned i = 0; i < 4; ++i) parts.emplace_back(out, in, 3, 10 * i + 1);
  const Use all{true, true, true};
  const Matrix x = random_matrix(GetParam(), 9, in, 5);
  const Matrix y(Dtype::f32, 9, 256);
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(9, 2, 16));
  same_everywhere(GetParam(), [&](Ops& ops) {
    std::vector<Patched> patched(4);
    std::vector<SitePatch> patches;
    for (size_t i = 0; i < 4; ++i) {
      pack(patched[i], parts[i], all, ops);
      patches.push_back(patched[i].patch);
    }
    const std::vector<AdapterView> views{{patches, false}};
    fill(y(), 6);
    ops.adapt(y(), x(), sites, segments, {views, {}, {}, false}, scratch());
    return bytes_of(y());
  });
  const Matrix before(Dtype::f32, 9, 256);
  fill(before(), 6);
  for (const LoraSegment& s : segments) {
    for (int64_t r = s.begin; r < s.end; ++r) {
      for (int64_t c = 0; c < 256; ++c) {
        const int64_t o = c / 128 * 64 + c % 64;
        const auto part = static_cast<size_t>(c / 64 % 2 * 2 + s.group);
        const double want =
            o < out ? expected(parts[part], all, x(), r, o, 0) : get(before(), r, c);
        ASSERT_NEAR(get(y(), r, c), want, 3e-5 * (1 + std::abs(want))) << r << " " << c;
      }
    }
  }
}

TEST_P(PatchTest, single_outputs_take_the_place_of_the_rest) {
  const int64_t in = 33, out = 300;
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 90; ++i) ids.push_back(3 * i + i % 2);
  const Matrix rows_of = random_matrix(Dtype::f32, 90, in, 3);
  const Parts parts(out, in, 4, 20);
  const Use all{true, true, true};
  const std::vector<LoraSite> sites{{.first = 0, .in = in, .out = out}};
  const std::vector<LoraSegment> segments{{1, 99, 0}};
  const Matrix x = random_matrix(GetParam(), 100, in, 5);
  const Matrix y(Dtype::f32, 100, out, 4);
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(100, 1, 16));
  same_everywhere(GetParam(), [&](Ops& ops) {
    Patched p;
    pack(p, parts, all, ops);
    std::byte* packed = p.take(static_cast<size_t>(ops.weight_layout(1, 90, in).group_bytes));
    ops.pack_matrix(packed, rows_of());
    p.change.tokens = ids.data();
    p.change.token_rows = packed;
    p.change.n_tokens = 90;
    const std::vector<SitePatch> patches{p.patch};
    const std::vector<AdapterView> views{{patches, false}};
    fill(y(), 6);
    ops.adapt(y(), x(), sites, segments, {views, {}, segments, false}, scratch());
    return bytes_of(y());
  });
  const Matrix before(Dtype::f32, 100, out);
  fill(before(), 6);
  for (int64_t r = 0; r < 100; ++r) {
    for (int64_t c = 0; c < out; ++c) {
      double want = get(before(), r, c);
      const auto at = std::find(ids.begin(), ids.end(), static_cast<int32_t>(c));
      if (r >= 1 && r < 99) {
        want = at == ids.end() ? expected(parts, all, x(), r, c, 0) : 0;
        for (int64_t i = 0; at != ids.end() && i < in; ++i) {
          want += rounded(GetParam(), get(rows_of(), at - ids.begin(), i)) * get(x(), r, i);
        }
      }
      ASSERT_NEAR(get(y(), r, c), want, 3e-5 * (1 + std::abs(want))) << r << " " << c;
    }
  }
}

TEST_P(PatchTest, a_row_has_the_same_bits_alone_and_among_others) {
  const int64_t in = 75, out = 190;
  const Parts parts(out, in, 20, 30);
  const std::vector<int32_t> ids{3, 90, 189};
  const Matrix rows_of = random_matrix(Dtype::f32, 3, in, 3);
  for (const Variant& v : variants()) {
    ThreadPool pool(3);
    const auto ops = checked_ops(GetParam(), pool, v);
    Patched p;
    pack(p, parts, {true, true, true}, *ops);
    std::byte* packed = p.take(static_cast<size_t>(ops->weight_layout(1, 3, in).group_bytes));
    ops->pack_matrix(packed, rows_of());
    p.change.tokens = ids.data();
    p.change.token_rows = packed;
    p.change.n_tokens = 3;
    const std::vector<SitePatch> patches{p.patch};
    const std::vector<AdapterView> views{{patches, false}};
    const std::vector<LoraSite> sites{{.first = 0, .in = in, .out = out}};
    const Matrix x = random_matrix(GetParam(), 200, in, 5);
    const Matrix alone = random_matrix(Dtype::f32, 200, out, 6);
    const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(200, 1, 20));
    for (int64_t r = 0; r < 200; ++r) {
      const std::vector<LoraSegment> one{{0, 1, 0}};
      ops->adapt(rows(alone(), r, 1), rows(x(), r, 1), sites, one, {views, {}, {}, false},
                 scratch());
    }
    for (const int32_t n : {2, 7, 97, 200}) {
      const Matrix y = random_matrix(Dtype::f32, 200, out, 6);
      const std::vector<LoraSegment> all{{0, n, 0}};
      ops->adapt(rows(y(), 0, n), rows(x(), 0, n), sites, all, {views, {}, {}, false}, scratch());
      EXPECT_TRUE(bytes_of(rows(y(), 0, n)) == bytes_of(rows(alone(), 0, n)))
          << v.name << ", " << n << " rows";
    }
  }
}

TEST_P(PatchTest, embeddings_of_an_adapter) {
  const int64_t vocab = 40, dim = 150;
  const int32_t rank = 18;
  const Matrix table = random_matrix(GetParam(), vocab, dim, 1);
  Matrix own(GetParam(), vocab, dim);
  fill(own(), 2);
  Matrix a(GetParam(), vocab, rank);  // by token
  fill(a(), 3);
  Matrix token_rows(GetParam(), 3, dim);
  fill(token_rows(), 4);
  const Matrix b = random_matrix(Dtype::f32, dim, rank, 5);
  const Matrix gain = random_matrix(Dtype::f32, 1, 192, 6);
  const std::vector<int32_t> replaced{0, 7, 39};
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 60; ++i) ids.push_back(i * 13 % 40);
  const Tensor id_tensor = view(ids.data(), Dtype::i32, {60});
  const LoraSite site{.first = 0, .in = vocab, .out = dim};
  // Adapters: pair and gain; a whole table and a pair; single rows on a whole table; nothing.
  const std::vector<LoraSegment> segments{{0, 20, 0}, {20, 21, 1}, {22, 50, 2}, {50, 60, 3}};
  const Matrix y(Dtype::f32, 60, dim, 4);
  const Matrix scratch(Dtype::f32, 1, Ops::lora_scratch_size(60, 1, rank));
  same_everywhere(GetParam(), [&](Ops& ops) {
    Buffer packed(ops.lora_b_bytes(dim, rank));
    ops.pack_lora_b(packed.data(), b());
    SiteChange with_gain, whole, tokens;
    with_gain.gain = gain().row<const float>(0);
    whole.weight = tokens.weight = own.data();
    tokens.tokens = replaced.data();
    tokens.token_rows = token_rows.data();
    tokens.n_tokens = 3;
    const std::vector<std::vector<SitePatch>> patches{
        {{a.data(), packed.data(), rank, 0.5F, &with_gain}},
        {{a.data(), packed.data(), rank, 0.5F, &whole}},
        {{nullptr, nullptr, 0, 0, &tokens}},
        {{}}};
    std::vector<AdapterView> views;
    for (const auto& p : patches) views.push_back({p, false});
    ops.embed(y(), table(), id_tensor);
    ops.adapt_embedding(y(), id_tensor, site, segments, {views, {}, segments, false}, scratch());
    return bytes_of(y());
  });
  for (int64_t r = 0; r < 60; ++r) {
    const int64_t id = ids[static_cast<size_t>(r)];
    const auto at = std::find(replaced.begin(), replaced.end(), ids[static_cast<size_t>(r)]);
    const int use = r < 20 ? 0 : r < 21 ? 1 : r < 22 ? 3 : r < 50 ? 2 : 3;
    for (int64_t c = 0; c < dim; ++c) {
      double want = use == 1 || use == 2 ? get(own(), id, c) : get(table(), id, c);
      for (int64_t k = 0; use < 2 && k < rank; ++k) {
        want += 0.5 * get(a(), id, k) * rounded(GetParam(), get(b(), c, k));
      }
      if (use == 0) want *= get(gain(), 0, c);
      if (use == 2 && at != replaced.end()) want = get(token_rows(), at - replaced.begin(), c);
      ASSERT_NEAR(get(y(), r, c), want, 3e-5 * (1 + std::abs(want))) << r << " " << c;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Act, PatchTest, testing::ValuesIn(kActs),
                         [](const auto& test) { return to_string(test.param); });

}  // namespace
}  // namespace lorry::test
