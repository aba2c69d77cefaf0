#include "cli/bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "base/error.h"
#include "base/float16.h"
#include "base/sha256.h"
#include "models/share.h"

namespace lorry {

namespace {

using Clock = std::chrono::steady_clock;

constexpr int kWarmUps = 2;

// How far each sequence can grow in a case.
int32_t longest(const BenchCase& c) {
  if (c.kind == BenchCase::Kind::prefill) return (c.tokens + c.batch - 1) / c.batch;
  return c.context + c.reps + kWarmUps;
}

int32_t blocks_per_sequence(const BenchCase& c) {
  return (longest(c) + kBlockTokens - 1) / kBlockTokens;
}

// Distinct tokens as far as the vocabulary goes: equal tokens would choose equal experts.
class TokenSource {
 public:
  explicit TokenSource(int32_t vocab) : ids_(static_cast<size_t>(vocab)) {
    std::iota(ids_.begin(), ids_.end(), 0);
    std::shuffle(ids_.begin(), ids_.end(), std::mt19937_64(1));
  }
  int32_t next() { return ids_[at_++ % ids_.size()]; }

 private:
  std::vector<int32_t> ids_;
  size_t at_ = 0;
};

// A batch in which sequence s owns a fixed range of KV blocks.
class BenchBatch {
 public:
  explicit BenchBatch(const BenchCase& c) : case_(c) {}

  // n new tokens for every sequence, from position `first`.
  const ForwardInput& build(TokenSource& tokens, int32_t first, int32_t n, Want want) {
    for (auto* v : {&ids_, &positions_, &lens_, &slots_, &adapters_, &rows_, &tables_, &kv_}) {
      v->clear();
    }
    cu_.assign(1, 0);
    const int32_t per = blocks_per_sequence(case_);
    for (int32_t s = 0; s < case_.batch; ++s) {
      for (int32_t p = first; p < first + n; ++p) {
        ids_.push_back(tokens.next());
        positions_.push_back(p);
        lens_.push_back(p + 1);
        slots_.push_back((s * per + p / kBlockTokens) * kBlockTokens + p % kBlockTokens);
      }
      cu_.push_back(static_cast<int32_t>(ids_.size()));
      kv_.push_back(first + n);
      rows_.push_back(cu_.back() - 1);
      adapters_.push_back(case_.adapters == 0 ? -1 : s % case_.adapters);
      for (int32_t b = 0; b < per; ++b) tables_.push_back(s * per + b);
    }
    input_ = {ids_, positions_, lens_, cu_, kv_, tables_, per, slots_, adapters_, rows_, want};
    return input_;
  }

 private:
  BenchCase case_;
  std::vector<int32_t> ids_, positions_, lens_, cu_, kv_, tables_, slots_, adapters_, rows_;
  ForwardInput input_;
};

// Keys and values as if `context` tokens had gone before: random ones, others in every layer and
// sequence. A prefill would take hours where the context is long.
void fill_cache(LoadedModel& m, const BenchCase& c) {
  constexpr int32_t kRows = 1024;
  const Spec own = ModelShare(m.info.spec, m.placements[static_cast<size_t>(m.comm->rank())]).own;
  const int64_t cols = own.kv_dim();
  if (cols == 0) return;  // more ranks than heads
  std::vector<float> values(static_cast<size_t>(2 * kRows * cols));
  std::vector<int32_t> slots;
  int64_t piece = 0;
  const auto write = [&](const KvLayer& kv, int64_t first, int32_t n) {
    m.pool->for_each(2 * n, [&](int64_t row) {
      std::minstd_rand random(static_cast<unsigned>(piece * 2 * kRows + row + 1));
      float* x = values.data() + row * cols;
      for (int64_t i = 0; i < cols; ++i) x[i] = static_cast<float>(random()) * 0x1p-30F - 1.0F;
    });
    ++piece;
    slots.resize(static_cast<size_t>(n));
    std::iota(slots.begin(), slots.end(), static_cast<int32_t>(first));
    const Tensor k = view(values.data(), Dtype::f32, {n, cols});
    const Tensor v = view(values.data() + n * cols, Dtype::f32, {n, cols});
    m.ops->kv_write(kv, k, v, view(slots.data(), Dtype::i32, {n}), own.attention);
  };
  for (const KvLayer& kv : m.layers) {
    for (int32_t s = 0; s < c.batch; ++s) {
      const int64_t begin = int64_t{s} * blocks_per_sequence(c) * kBlockTokens;
      for (int32_t p = 0; p < c.context; p += kRows) {
        write(kv, begin + p, std::min(kRows, c.context - p));
      }
    }
  }
}

std::string hash_logits(const Tensor& logits) {
  Sha256 hash;
  for (int64_t r = 0; r < logits.rows(); ++r) {
    hash.update(
        std::as_bytes(std::span(logits.row<const float>(r), static_cast<size_t>(logits.cols()))));
  }
  return to_hex(hash.finish());
}

double mean(const std::vector<double>& x) {
  return std::accumulate(x.begin(), x.end(), 0.0) / static_cast<double>(x.size());
}

double median(std::vector<double> x) {
  std::sort(x.begin(), x.end());
  return x.empty() ? 0 : x[x.size() / 2];
}

std::vector<double> milliseconds(const OpTimes& times) {
  std::vector<double> ms;
  for (const auto& ns : times.ns) ms.push_back(static_cast<double>(ns.load()) * 1e-6);
  return ms;
}

Probe median_probe(const std::vector<Probe>& probes) {
  std::vector<double> bf16, int8, read;
  for (const Probe& p : probes) {
    bf16.push_back(p.bf16_gflops);
    int8.push_back(p.int8_gops);
    read.push_back(p.read_gb_s);
  }
  return {median(bf16), median(int8), median(read)};
}

}  // namespace

BenchSize size_of_case(const BenchCase& c) {
  const bool prefill = c.kind == BenchCase::Kind::prefill;
  return {prefill ? longest(c) * c.batch : c.batch, c.batch,
          int64_t{c.batch} * blocks_per_sequence(c) * kBlockTokens};
}

BenchWork count_work(const Spec& s, const Ops& ops, const BenchCase& c) {
  const bool prefill = c.kind == BenchCase::Kind::prefill;
  const double rows = prefill ? longest(c) * c.batch : c.batch;
  const double k = s.routing.top_k;
  const double touched = s.experts * (1 - std::pow(1 - k / s.experts, rows));
  const double context = prefill ? longest(c) / 2.0 : c.context + c.reps / 2.0;
  const auto layers = static_cast<double>(s.layers);
  BenchWork w;
  // `count` linears of which `used` compute, `n` rows each.
  const auto linear = [&](int64_t out, int64_t in, WeightFormat format, double count, double used,
                          double n) {
    const double values = static_cast<double>(out) * static_cast<double>(in);
    const auto panels = static_cast<double>((out + kPanel - 1) / kPanel);
    w.bytes +=
        count * panels * static_cast<double>(ops.weight_layout(1, kPanel, in, format).group_bytes);
    const bool whole_numbers =
        ops.act() != Dtype::f32 &&
        (format.kind == WeightFormat::Kind::int8 || format.kind == WeightFormat::Kind::int4);
    (whole_numbers ? w.int8 : w.flops) += 2 * used * n * values;
  };
  const WeightFormat f = s.formats.linears;
  linear(s.qkv_dim(), s.dim, f, layers, layers, rows);
  linear(s.dim, s.q_dim(), f, layers, layers, rows);
  linear(s.ffn, s.dim, f, 2 * layers * touched, 2 * layers * k, rows);
  linear(s.dim, s.ffn, f, layers * touched, layers * k, rows);
  linear(s.vocab, s.dim, s.formats.head, 1, 1, c.batch);
  const double router = static_cast<double>(s.dim) * s.experts;
  w.bytes += layers * router * static_cast<double>(size_of(ops.act()));
  w.flops += 2 * rows * layers * router;
  const auto block =
      static_cast<double>(KvCache::block_bytes(s.layers, ops.kv_layout(1, s.attention)));
  w.kv_bytes = block / kBlockTokens * (prefill ? longest(c) : context) * c.batch;
  w.bytes += w.kv_bytes;
  w.flops += 4 * rows * layers * static_cast<double>(s.q_dim()) * context;
  return w;
}

// All linears. Fused parameters stand for the per-expert sites where a family has no others.
std::vector<SiteInfo> adapted_sites(const LoadedModel& model) {
  std::vector<SiteInfo> sites;
  for (const SiteInfo& s : model.sites.sites) {
    if (is_linear(s.site.kind)) sites.push_back(s);
  }
  for (const FusedParameter& f : model.sites.fused) {
    const bool rows = f.form == FusedParameter::Form::rows_gate ||
                      f.form == FusedParameter::Form::rows_up ||
                      f.form == FusedParameter::Form::rows_down_transposed;
    if (!rows) continue;
    const SiteKind kind = f.parameter == "w1"   ? SiteKind::gate
                          : f.parameter == "v1" ? SiteKind::up
                                                : SiteKind::down;
    for (int32_t e = 0; e < model.sites.index.experts; ++e) {
      sites.push_back({f.module, {kind, f.layer, e}, f.in, f.out});
    }
  }
  return sites;
}

BenchAdapters make_adapters(const LoadedModel& model, int32_t n, int32_t rank) {
  BenchAdapters all;
  const Ops& ops = *model.ops;
  const auto aligned = [](size_t bytes) { return (bytes + 63) / 64 * 64; };
  const std::vector<SiteInfo> sites = adapted_sites(model);
  size_t bytes = 0;
  for (const SiteInfo& s : sites) {
    bytes += aligned(ops.lora_a_bytes(rank, s.in)) + aligned(ops.lora_b_bytes(s.out, rank));
  }
  all.memory = Buffer(bytes * static_cast<size_t>(n), ops.memory());
  ops.spread(all.memory.data(), all.memory.size());
  std::byte* at = all.memory.data();
  std::mt19937_64 random(7);
  std::vector<bf16> values;
  const auto matrix = [&](int64_t rows, int64_t cols, float scale) {
    values.resize(static_cast<size_t>(rows * cols));
    for (bf16& v : values) {
      v = to_bf16(scale * (static_cast<float>(random() >> 40) * 0x1p-23F - 1.0F));
    }
    return view(values.data(), Dtype::bf16, {rows, cols});
  };
  for (int32_t i = 0; i < n; ++i) {
    auto& patches = all.patches.emplace_back(static_cast<size_t>(model.sites.index.size()));
    std::byte* const first = at;
    for (const SiteInfo& s : sites) {
      SitePatch& p = patches[static_cast<size_t>(model.sites.index(s.site))];
      if (i == 0)
        ops.pack_lora_a(at, matrix(rank, s.in, 1.0F / std::sqrt(static_cast<float>(s.in))));
      p.a = at;
      at += aligned(ops.lora_a_bytes(rank, s.in));
      if (i == 0) ops.pack_lora_b(at, matrix(s.out, rank, 0.05F));
      p.b = at;
      at += aligned(ops.lora_b_bytes(s.out, rank));
      p.rank = rank;
      p.scale = 1.0F;
    }
    if (i == 0) continue;
    if (ops.memory() != nullptr) {
      ops.memory()->move(first, all.memory.data(), bytes);
    } else {
      std::memcpy(first, all.memory.data(), bytes);
    }
  }
  for (const auto& patches : all.patches) all.views.push_back({patches});
  return all;
}

BenchResult run_case(LoadedModel& m, const BenchCase& c, const OpTimes* times) {
  const bool prefill = c.kind == BenchCase::Kind::prefill;
  const BenchAdapters adapters = make_adapters(m, c.adapters, c.rank);
  const BenchWork work = count_work(m.info.spec, *m.ops, c);
  TokenSource tokens(m.info.spec.vocab);
  BenchBatch batch(c);
  BenchResult result;
  result.what = c;
  const auto forward = [&](int32_t first, int32_t n, Want want) {
    return m.lm->forward(batch.build(tokens, first, n, want), m.layers, adapters.views);
  };
  if (!prefill) fill_cache(m, c);
  std::vector<double> seconds, fractions;
  std::vector<Probe> probes;
  std::vector<double> op_ms;
  Probe probe;
  for (int rep = 0; rep < c.reps + kWarmUps; ++rep) {
    // A roofline is the processor's.
    const bool on_device = m.ops->memory() != nullptr;
    if (!on_device && (rep == 0 || !c.warm)) probe = probe_machine(*m.pool, m.isa);
    if (times != nullptr && rep == kWarmUps) op_ms = milliseconds(*times);
    least_of(*m.comm, 0);  // no rank is still at its probe
    const auto start = Clock::now();
    // Measured is what greedy requests need: their tokens.
    const Want want = rep == 0 ? Want::logits : Want::best;
    const ForwardOutput out =
        prefill ? forward(0, longest(c), want) : forward(c.context + rep, 1, want);
    const double s = std::chrono::duration<double>(Clock::now() - start).count();
    if (rep == 0) result.logits_sha256 = hash_logits(out.logits);
    if (rep < kWarmUps) continue;
    seconds.push_back(s);
    probes.push_back(probe);
    if (on_device) continue;
    const double computing =
        work.flops / probe.bf16_gflops + (work.int8 > 0 ? work.int8 / probe.int8_gops : 0);
    const double roofline = 1e-9 * std::max(work.bytes / probe.read_gb_s, computing);
    fractions.push_back(roofline / s);
  }
  if (times != nullptr) {
    result.op_ms = milliseconds(*times);
    double rest = 1e3 * std::accumulate(seconds.begin(), seconds.end(), 0.0);
    for (size_t i = 0; i < op_ms.size(); ++i) rest -= result.op_ms[i] -= op_ms[i];
    result.op_ms.push_back(rest);
    for (double& ms : result.op_ms) ms /= c.reps;
  }
  result.seconds = c.warm ? mean(seconds) : median(seconds);
  result.tokens_per_s = (prefill ? longest(c) * c.batch : c.batch) / result.seconds;
  result.bytes = work.bytes;
  result.kv_bytes = work.kv_bytes;
  result.gb_per_s = work.bytes / result.seconds * 1e-9;
  result.gflops = (work.flops + work.int8) / result.seconds * 1e-9;
  if (!fractions.empty()) result.of_roofline = median(fractions);
  result.probe = median_probe(probes);
  return result;
}

}  // namespace lorry
