#include "models/causal_lm.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"

namespace lorry {

namespace {

// Takes every step buffer from `take(dtype, rows, cols)`, so that counting and carving agree.
template <class Take>
StepBuffers lay_out(const ModelShare& share, const Ops& ops, const ForwardLimits& limits,
                    Take&& take) {
  const Spec& s = share.own;
  const Dtype act = ops.act();
  const int64_t t = limits.max_tokens;
  const int64_t n = t * s.routing.top_k;
  StepBuffers b;
  b.x = take(Dtype::f32, t, s.dim);
  b.h = take(act, t, s.dim);
  b.qkv = take(Dtype::f32, t, s.qkv_dim());
  b.o = take(act, t, s.q_dim());
  b.scores = take(Dtype::f32, t, s.experts);
  b.hs = take(act, n, s.dim);
  b.gate_up = take(Dtype::f32, n, gate_up_dim(s.ffn));
  b.act = take(act, n, s.ffn);
  b.down = take(Dtype::f32, n, s.dim);
  b.cos = take(Dtype::f32, t, s.attention.head_dim / 2);
  b.sin = take(Dtype::f32, t, s.attention.head_dim / 2);
  const int64_t sites = 3;  // q, k and v are the most that one linear has
  const int64_t out = int64_t{limits.max_logit_rows} * std::max(1, limits.max_medusa_heads);
  b.lora = take(Dtype::f32, 1,
                Ops::lora_scratch_size(std::max({n, t, out}), sites, limits.max_lora_rank));
  const size_t linear = std::max({ops.linear_scratch_bytes(t, std::max<int64_t>(s.dim, s.q_dim())),
                                  ops.linear_scratch_bytes(n, std::max(s.dim, s.ffn)),
                                  ops.linear_scratch_bytes(out, s.dim)});
  b.linear = take(Dtype::u8, 1, static_cast<int64_t>(linear));
  b.route.expert = take(Dtype::i32, t, s.routing.top_k);
  b.route.weight = take(Dtype::f32, t, s.routing.top_k);
  b.route.slot = take(Dtype::i32, t, s.routing.top_k);
  b.route.source = take(Dtype::i32, 1, n);
  b.route.begin = take(Dtype::i32, 1, share.placement.experts.count + 1);
  b.route.segment = take(Dtype::u8, 1, n * static_cast<int64_t>(sizeof(LoraSegment)));
  b.route.experts = s.experts;
  b.route.first_own = static_cast<int32_t>(share.placement.experts.first);
  b.route.n_own = static_cast<int32_t>(share.placement.experts.count);
  b.route.on_device = ops.memory() != nullptr;
  return b;
}

// What is summed over ranks, apart, as it may lie in memory that they have in common.
size_t sums_bytes(const ModelShare& share, const ForwardLimits& limits) {
  return (share.is_whole() ? 1 : 2) *
         Arena::matrix_bytes(Dtype::f32, limits.max_tokens, share.own.dim);
}
void lay_out_sums(StepBuffers& b, const ModelShare& share, const ForwardLimits& limits,
                  Arena& arena) {
  const auto take = [&] { return arena.matrix(Dtype::f32, limits.max_tokens, share.own.dim); };
  b.y = take();
  b.z = share.is_whole() ? b.y : take();
}

// For the attention that a rank has; where it has none, of one head, so that sizes are defined.
AttentionSpec some_heads(AttentionSpec s) {
  if (s.heads == 0) s.heads = s.kv_heads = 1;
  return s;
}

constexpr int64_t kBestWords = sizeof(BestOfPart) / sizeof(float);

// Maximal runs of equal adapters, rows without one left out.
void find_segments(std::span<const int32_t> row_adapter, std::vector<LoraSegment>& out) {
  out.clear();
  for (size_t i = 0; i < row_adapter.size(); ++i) {
    const int32_t adapter = row_adapter[i];
    if (adapter < 0) continue;
    const auto row = static_cast<int32_t>(i);
    if (!out.empty() && out.back().end == row && out.back().adapter == adapter) {
      ++out.back().end;
    } else {
      out.push_back({row, row + 1, adapter, 0});
    }
  }
}

Tensor index_tensor(std::span<const int32_t> values) {
  return view(const_cast<int32_t*>(values.data()), Dtype::i32,
              {static_cast<int64_t>(values.size())});
}

// Rows of logits and of speculative logits that rank 0 puts together.
std::array<int64_t, 2> rows_to_gather(const ModelShare& share, const ForwardLimits& limits) {
  if (share.is_whole() || share.placement.rank != 0) return {0, 0};
  return {limits.max_logit_rows, int64_t{limits.max_logit_rows} * limits.max_medusa_heads};
}
size_t gathered_bytes(const ModelShare& share, const ForwardLimits& limits) {
  size_t bytes = 0;
  for (const int64_t n : rows_to_gather(share, limits)) {
    bytes += Arena::matrix_bytes(Dtype::f32, n, share.whole.vocab);
  }
  return bytes;
}

}  // namespace

CausalLM::CausalLM(const ModelShare& share, ModelWeights weights, Ops& ops, Comm& comm,
                   const ForwardLimits& limits)
    : share_(share),
      spec_(share_.own),
      weights_(std::move(weights)),
      ops_(ops),
      comm_(comm),
      limits_(limits),
      rope_(spec_.rope, spec_.attention.head_dim),
      inputs_(ops.memory()),
      sums_(memory_of_sums(sums_bytes(share_, limits))),
      arena_(step_bytes(share_, ops, limits), ops.memory()),
      gathered_(gathered_bytes(share_, limits)),
      medusa_({}, limits) {
  const auto tokens = static_cast<size_t>(limits.max_tokens);
  const auto logit_rows = static_cast<size_t>(limits.max_logit_rows);
  LORRY_CHECK(comm.rank() == share.placement.rank && comm.size() == share.placement.ranks,
              "rank {} of {} has the part of rank {} of {}", comm.rank(), comm.size(),
              share.placement.rank, share.placement.ranks);
  for (int r = 0; r < comm.size(); ++r) {
    vocab_widths_.push_back(vocab_of(shape_of(share_.whole), r, comm.size()).count);
    best_widths_.push_back(kBestWords);
  }
  own_ids_.reserve(tokens);
  row_adapter_.reserve(tokens);
  segments_.reserve(tokens);
  out_adapter_.reserve(logit_rows);
  out_segments_.reserve(logit_rows);
  carve();
}

size_t CausalLM::scratch_bytes(const ModelShare& share, const Ops& ops,
                               const ForwardLimits& limits) {
  const size_t gathered = ops.memory() == nullptr ? gathered_bytes(share, limits) : 0;
  return step_bytes(share, ops, limits) + sums_bytes(share, limits) + gathered;
}

size_t CausalLM::step_bytes(const ModelShare& share, const Ops& ops, const ForwardLimits& limits) {
  const Spec& spec = share.own;
  size_t bytes = 0;
  const auto take = [&](Dtype dtype, int64_t n, int64_t cols) {
    bytes += Arena::matrix_bytes(dtype, n, cols);
    return Tensor{};
  };
  lay_out(share, ops, limits, take);
  take(Dtype::f32, limits.max_logit_rows, spec.dim);
  take(ops.act(), limits.max_logit_rows, spec.dim);
  take(Dtype::f32, limits.max_logit_rows, spec.vocab);
  take(Dtype::i32, 1, limits.max_logit_rows);
  MedusaBuffers::lay_out(spec, ops.act(), limits, take);
  const auto attention = ops.attention_scratch_bytes(limits.max_tokens, some_heads(spec.attention));
  return bytes + Arena::tensor_bytes(Dtype::u8, {static_cast<int64_t>(attention)});
}

Arena CausalLM::memory_of_sums(size_t bytes) {
  std::byte* common = comm_.common_memory(bytes);
  return common != nullptr ? Arena({common, bytes}) : Arena(bytes, ops_.memory());
}

void CausalLM::carve() {
  const auto take = [&](Dtype dtype, int64_t n, int64_t cols) {
    return arena_.matrix(dtype, n, cols);
  };
  full_ = lay_out(share_, ops_, limits_, take);
  lay_out_sums(full_, share_, limits_, sums_);
  out_x_ = take(Dtype::f32, limits_.max_logit_rows, spec_.dim);
  out_h_ = take(ops_.act(), limits_.max_logit_rows, spec_.dim);
  logits_ = take(Dtype::f32, limits_.max_logit_rows, spec_.vocab);
  best_ = take(Dtype::i32, 1, limits_.max_logit_rows);
  medusa_ = MedusaRunner(MedusaBuffers::lay_out(spec_, ops_.act(), limits_, take), limits_);
  const auto gathered = rows_to_gather(share_, limits_);
  whole_logits_ = gathered_.matrix(Dtype::f32, gathered[0], share_.whole.vocab);
  whole_speculative_ = gathered_.matrix(Dtype::f32, gathered[1], share_.whole.vocab);
  const auto attention =
      ops_.attention_scratch_bytes(limits_.max_tokens, some_heads(spec_.attention));
  attention_scratch_ = arena_.tensor(Dtype::u8, {static_cast<int64_t>(attention)});
}

StepBuffers CausalLM::cut(int64_t t) {
  const int64_t n = t * spec_.routing.top_k;
  StepBuffers b = full_;
  for (Tensor* r : {&b.x, &b.h, &b.qkv, &b.o, &b.y, &b.z, &b.scores, &b.cos, &b.sin,
                    &b.route.expert, &b.route.weight, &b.route.slot}) {
    *r = rows(*r, 0, t);
  }
  for (Tensor* r : {&b.hs, &b.gate_up, &b.act, &b.down}) *r = rows(*r, 0, n);
  b.route.source = view(b.route.source.data, Dtype::i32, {n});
  return b;
}

LoraPlan CausalLM::plan_rows(const ForwardInput& in, std::span<const AdapterView> adapters) {
  row_adapter_.clear();
  for (const int32_t a : in.adapters) {
    LORRY_CHECK(a >= -1 && a < static_cast<int32_t>(adapters.size()), "adapter {} of {}", a,
                adapters.size());
  }
  for (size_t s = 0; s + 1 < in.cu_seqlens.size(); ++s) {
    const auto n = static_cast<size_t>(in.cu_seqlens[s + 1] - in.cu_seqlens[s]);
    row_adapter_.insert(row_adapter_.end(), n, in.adapters[s]);
  }
  find_segments(row_adapter_, segments_);
  const bool norms =
      std::any_of(adapters.begin(), adapters.end(), [](const AdapterView& a) { return a.norms; });
  return {adapters, row_adapter_, segments_, norms};
}

ForwardOutput CausalLM::forward(const ForwardInput& in, std::span<const KvLayer> kv,
                                std::span<const AdapterView> adapters) {
  const auto t = static_cast<int64_t>(in.input_ids.size());
  const size_t n_sequences = in.kv_lens.size();
  LORRY_CHECK(t > 0 && t <= limits_.max_tokens && kv.size() == weights_.layers.size(), "{} rows",
              t);
  LORRY_CHECK(in.cu_seqlens.size() == n_sequences + 1 && in.adapters.size() == n_sequences &&
                  in.position_ids.size() == in.input_ids.size() &&
                  in.rope_lens.size() == in.input_ids.size() &&
                  in.slots.size() == in.input_ids.size() && in.cu_seqlens.back() == t &&
                  in.block_tables.size() == n_sequences * static_cast<size_t>(in.max_blocks),
              "sizes of a forward input disagree");
  LORRY_CHECK(in.logit_rows.size() <= static_cast<size_t>(limits_.max_logit_rows), "{} logit rows",
              in.logit_rows.size());

  StepBuffers buf = cut(t);
  LoraPlan lora = plan_rows(in, adapters);
  const auto half = static_cast<size_t>(buf.cos.cols());
  inputs_.begin(
      in.input_ids.size() * (3 + 2 * half) + in.block_tables.size() + in.logit_rows.size(), 7);
  const StepInputs::Pair cos = inputs_.matrix(buf.cos);
  const StepInputs::Pair sin = inputs_.matrix(buf.sin);
  rope_.fill(cos.fill, sin.fill, in.position_ids, in.rope_lens);
  buf.cos = cos.read;
  buf.sin = sin.read;
  const Tensor ids = index_tensor(inputs_.put(own_ids(in.input_ids)));
  const Tensor slots = index_tensor(inputs_.put(in.slots));
  const Tensor logit_rows = index_tensor(inputs_.put(in.logit_rows));
  if (!lora.segments.empty()) lora.row_adapter = inputs_.put(lora.row_adapter);
  const AttentionPlan attention{in.cu_seqlens, in.kv_lens, inputs_.put(in.block_tables),
                                in.max_blocks, attention_scratch_};
  inputs_.send();
  const std::array<int32_t, 2> all{0, static_cast<int32_t>(t)};
  Step step{ops_, comm_, spec_, buf, attention, lora, slots, {{all}, lora.segments}};
  ops_.embed(buf.x, weights_.embed, ids);
  if (!lora.segments.empty()) {
    ops_.adapt_embedding(buf.x, ids, weights_.embed_site, lora.segments, lora, buf.lora);
  }
  comm_.all_reduce(buf.x);
  const std::vector<DecoderLayer>& layers = weights_.layers;
  apply(step, buf.h, buf.x, layers.front().attn_norm, step.rows);
  for (size_t i = 0; i < kv.size(); ++i) {
    layers[i].forward(step, kv[i], i + 1 < kv.size() ? &layers[i + 1].attn_norm : nullptr);
  }
  routes_ = step.routes;

  if (in.logit_rows.empty()) {
    // What the step read may change now: its inputs, the adapters of requests that step aside.
    if (ops_.memory() != nullptr) ops_.memory()->finish();
    return {};
  }
  return outputs(in, step, logit_rows);
}

ForwardOutput CausalLM::outputs(const ForwardInput& in, Step& step, Tensor logit_rows) {
  const auto r = static_cast<int64_t>(in.logit_rows.size());
  const Tensor x = rows(out_x_, 0, r);
  const Tensor h = rows(out_h_, 0, r);
  ops_.gather(x, step.buf.x, logit_rows);
  out_adapter_.clear();
  for (const int32_t row : in.logit_rows) {
    out_adapter_.push_back(row_adapter_[static_cast<size_t>(row)]);
  }
  find_segments(out_adapter_, out_segments_);
  const std::array<int32_t, 2> all{0, static_cast<int32_t>(r)};
  const Rows out_rows{{all}, out_segments_};
  apply(step, h, x, weights_.final_norm, out_rows);
  ForwardOutput out;
  if (in.want == Want::hidden) {
    out.hidden = on_host(h, host_hidden_);
    return out;
  }
  const Tensor logits = rows(logits_, 0, r);
  const Tensor best = view(best_.data, Dtype::i32, {r});
  apply_best(step, best, logits, h, weights_.head, out_rows);
  const bool want_logits = in.want == Want::logits;
  const Tensor own = want_logits || comm_.size() > 1 ? on_host(logits, host_logits_) : Tensor{};
  out.best = best_of_ranks(on_host(best, host_best_), own);
  if (want_logits) out.logits = gathered(own, whole_logits_);
  out.speculative = medusa_.run(step, h, out_segments_, weights_.head);
  if (!out.speculative) return out;
  Tensor guesses = out.speculative;
  const int64_t heads = guesses.shape[1];
  guesses.shape = {r * heads, guesses.cols()};
  out.speculative = gathered(on_host(guesses, host_speculative_), whole_speculative_);
  out.speculative.shape = {r, heads, out.speculative.cols()};
  return out;
}

// Results are the processor's to read.
Tensor CausalLM::on_host(const Tensor& t, PinnedBuffer& memory) const {
  if (ops_.memory() == nullptr) return t;
  const auto bytes = static_cast<size_t>(((t.rows() - 1) * t.pitch + t.cols()) * size_of(t.dtype));
  if (memory.size() < bytes) memory = PinnedBuffer(bytes, ops_.memory());
  Tensor copy = t;
  copy.data = memory.data();
  ops_.memory()->read(copy.data, t.data, bytes);
  return copy;
}

// As rows of the rank's part of the embedding; -1 where another rank has it.
std::span<const int32_t> CausalLM::own_ids(std::span<const int32_t> ids) {
  if (share_.is_whole()) return ids;
  const Range& own = share_.placement.vocab;
  own_ids_.clear();
  for (const int32_t id : ids) {
    const int64_t row = id - own.first;
    own_ids_.push_back(row >= 0 && row < own.count ? static_cast<int32_t>(row) : -1);
  }
  return own_ids_;
}

// Of each row, from the best of the ranks' parts of the vocabulary; for rank 0.
Tensor CausalLM::best_of_ranks(Tensor best, Tensor logits) {
  if (share_.is_whole()) return best;
  const auto n = static_cast<size_t>(best.shape.size());
  const auto ranks = static_cast<size_t>(comm_.size());
  auto* const places = best.row<int32_t>(0);
  const auto as_words = [](std::vector<BestOfPart>& parts, size_t r, size_t cols) {
    parts.resize(r * cols);
    return view(parts.data(), Dtype::f32,
                {static_cast<int64_t>(r), static_cast<int64_t>(cols) * kBestWords});
  };
  const Tensor part = as_words(own_best_, n, 1);
  for (size_t r = 0; r < n; ++r) {
    const auto* row = logits.row<const float>(static_cast<int64_t>(r));
    own_best_[r] = best_of_part({row, static_cast<size_t>(logits.cols())}, places[r],
                                share_.placement.vocab.first);
  }
  if (comm_.rank() != 0) {
    comm_.gather({}, part, best_widths_);
    return best;
  }
  comm_.gather(as_words(all_best_, n, ranks), part, best_widths_);
  for (size_t r = 0; r < n; ++r) places[r] = best_of({&all_best_[r * ranks], ranks});
  return best;
}

// All columns on rank 0; elsewhere the rank's own stay what there is. In the processor's memory.
Tensor CausalLM::gathered(Tensor part, Tensor whole) {
  if (share_.is_whole()) return part;
  if (comm_.rank() != 0) {
    comm_.gather({}, part, vocab_widths_);
    return part;
  }
  whole = rows(whole, 0, part.rows());
  comm_.gather(whole, part, vocab_widths_);
  return whole;
}

}  // namespace lorry
