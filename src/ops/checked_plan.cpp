#include "ops/checked_plan.h"

#include <algorithm>

#include "base/error.h"
#include "ops/checked_weight.h"

namespace lorry {

void check_vector(const char* name, const Tensor& t, Dtype dtype, int64_t size) {
  LORRY_CHECK(t.dtype == dtype && t.shape.size() >= size && (t.data != nullptr || size == 0),
              "{}: {} {}, expected {} [{}]", name, to_string(t.dtype), to_string(t.shape),
              to_string(dtype), size);
}

void check_range(const char* name, const Tensor& t, int64_t size, int64_t from, int64_t to) {
  for (int64_t i = 0; i < size; ++i) {
    const int32_t x = t.row<const int32_t>(0)[i];
    LORRY_CHECK(x >= from && x < to, "{}[{}] = {}, not in [{}, {})", name, i, x, from, to);
  }
}

void check_groups(const RowGroups& groups, int64_t count, int64_t rows) {
  const auto& begin = groups.begin;
  LORRY_CHECK(
      static_cast<int64_t>(begin.size()) == count + 1 && begin.front() == 0 && begin.back() == rows,
      "{} groups of {} rows, expected {} of {}", begin.size(), begin.back(), count, rows);
  for (size_t g = 1; g < begin.size(); ++g) {
    LORRY_CHECK(begin[g - 1] <= begin[g], "group {} has {} rows", g - 1, begin[g] - begin[g - 1]);
  }
}

void check_spec(const AttentionSpec& s) {
  LORRY_CHECK(s.heads > 0 && s.kv_heads > 0 && s.heads % s.kv_heads == 0 && s.head_dim > 0 &&
                  s.head_dim % 2 == 0 && s.window >= 0,
              "{} / {} heads of {}, window {}", s.heads, s.kv_heads, s.head_dim, s.window);
}

int32_t check_patch(const LoraSite& site, int64_t tokens, const LoraSegment& segment,
                    const LoraPlan& plan) {
  const auto& patches = plan.adapters[static_cast<size_t>(segment.adapter)].patches;
  const int32_t index = site.index(segment.group);
  LORRY_CHECK(index >= 0 && static_cast<size_t>(index) < patches.size(), "site {} of {}", index,
              patches.size());
  const SitePatch& patch = patches[static_cast<size_t>(index)];
  LORRY_CHECK(patch.rank == 0 || (patch.a != nullptr && patch.b != nullptr), "rank {}", patch.rank);
  if (patch.change == nullptr) return patch.rank;
  const SiteChange& c = *patch.change;
  LORRY_CHECK(c.n_tokens == 0 || (c.tokens != nullptr && c.token_rows != nullptr), "{} tokens",
              c.n_tokens);
  for (int32_t i = 0; i < c.n_tokens; ++i) {
    const int32_t before = i == 0 ? -1 : c.tokens[i - 1];
    LORRY_CHECK(c.tokens[i] > before && c.tokens[i] < tokens, "token {} after {}, of {}",
                c.tokens[i], before, tokens);
  }
  return patch.rank;
}

void check_plan(const AttentionPlan& plan, const AttentionSpec& spec, int64_t rows,
                int64_t blocks) {
  const auto sequences = static_cast<int64_t>(plan.kv_len.size());
  check_groups({plan.q_begin}, sequences, rows);
  LORRY_CHECK(static_cast<int64_t>(plan.block_table.size()) >= sequences * plan.max_blocks,
              "a table of {} for {} sequences of {}", plan.block_table.size(), sequences,
              plan.max_blocks);
  for (size_t s = 0; s < plan.kv_len.size(); ++s) {
    const int32_t n = plan.q_begin[s + 1] - plan.q_begin[s];
    const int32_t length = plan.kv_len[s];
    LORRY_CHECK(n <= length && length <= plan.max_blocks * kBlockTokens,
                "sequence {}: {} rows of {} tokens in {} blocks", s, n, length, plan.max_blocks);
    if (n == 0) continue;
    const int32_t first = spec.window > 0 ? std::max(0, length - n - spec.window + 1) : 0;
    for (int32_t b = first / kBlockTokens; b <= (length - 1) / kBlockTokens; ++b) {
      const int32_t block =
          plan.block_table[s * static_cast<size_t>(plan.max_blocks) + static_cast<size_t>(b)];
      LORRY_CHECK(block >= 0 && block < blocks, "sequence {}: block {} is {} of {}", s, b, block,
                  blocks);
    }
  }
}

void check_clamp(const Tensor& x, float limit) {
  check_matrix("x", x, Dtype::f32, x.rows(), x.cols());
  LORRY_CHECK(limit > 0, "{}", limit);
}

void check_rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  check_matrix("x", x, Dtype::f32, x.rows(), x.cols());
  check_matrix("cos", cos, Dtype::f32, x.rows(), cos.cols());
  check_matrix("sin", sin, Dtype::f32, x.rows(), cos.cols());
  LORRY_CHECK(x.cols() % (2 * cos.cols()) == 0, "{} columns, heads of {}", x.cols(),
              2 * cos.cols());
}

void check_route(const Route& route, const Tensor& scores, const Routing& routing) {
  check_matrix("scores", scores, Dtype::f32, scores.rows(), route.experts);
  check_matrix("expert", route.expert, Dtype::i32, scores.rows(), routing.top_k);
  check_matrix("weight", route.weight, Dtype::f32, scores.rows(), routing.top_k);
  LORRY_CHECK(routing.top_k > 0 && routing.top_k <= route.experts && routing.norm_p >= 0,
              "{} of {} experts, norm {}", routing.top_k, route.experts, routing.norm_p);
}

void check_group(const Route& route, const LoraPlan& plan) {
  const int64_t rows = route.expert.rows();
  const int64_t n = rows * route.expert.cols();
  check_matrix("expert", route.expert, Dtype::i32, rows, route.expert.cols());
  check_matrix("slot", route.slot, Dtype::i32, rows, route.expert.cols());
  check_vector("source", route.source, Dtype::i32, n);
  check_vector("begin", route.begin, Dtype::i32, route.groups_count() + 1);
  LORRY_CHECK(route.first_own >= 0 && route.first_own + route.groups_count() <= route.experts,
              "experts {} + {} of {}", route.first_own, route.groups_count(), route.experts);
  check_vector("segment", route.segment, Dtype::u8, n * int64_t{sizeof(LoraSegment)});
  LORRY_CHECK(plan.row_adapter.empty() || static_cast<int64_t>(plan.row_adapter.size()) == rows,
              "adapters of {} rows, not of {}", plan.row_adapter.size(), rows);
  for (const int32_t a : plan.row_adapter) {
    LORRY_CHECK(a < static_cast<int32_t>(plan.adapters.size()), "adapter {} of {}", a,
                plan.adapters.size());
  }
}

void check_combine(const Tensor& y, const Tensor& d, const Route& route) {
  const int64_t k = route.slot.cols();
  check_matrix("d", d, Dtype::f32, d.rows(), y.cols());
  check_matrix("y", y, Dtype::f32, y.rows(), d.cols());
  check_matrix("slot", route.slot, Dtype::i32, y.rows(), k);
  check_matrix("weight", route.weight, Dtype::f32, y.rows(), k);
  for (int64_t r = 0; r < y.rows(); ++r) {
    check_range("slot", rows(route.slot, r, 1), k, -1, d.rows());
  }
}

}  // namespace lorry
