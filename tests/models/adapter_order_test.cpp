// Where an adapter's part enters when a model is spread over ranks: before the sums over them.
#include <algorithm>
#include <array>
#include <numeric>

#include <gtest/gtest.h>

#include "models/loader.h"
#include "ops/checked_ops.h"
#include "ops/cpu/cpu_ops.h"

namespace lorry {
namespace {

constexpr const char* kConfig = R"({
  "model_type": "mixtral", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
  "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "num_local_experts": 2, "num_experts_per_tok": 1, "max_position_embeddings": 64})";

// Keeps what each rank would give to the sum.
class RecordingComm final : public Comm {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  int local_size() const override { return 1; }
  void gather(Tensor, Tensor, std::span<const int64_t>) override {}
  void broadcast(Bytes&) override {}
  std::vector<Bytes> collect(std::span<const std::byte>) override { return {}; }
  int64_t bytes_sent() const override { return 0; }
  void all_reduce(Tensor x) override {
    std::vector<float>& copy = parts.emplace_back();
    for (int64_t r = 0; r < x.rows(); ++r) {
      copy.insert(copy.end(), x.row<float>(r), x.row<float>(r) + x.cols());
    }
  }
  std::vector<std::vector<float>> parts;
};

class AdapterOrder : public testing::Test {
 protected:
  AdapterOrder() : pool_(1), ops_(make_checked_ops(make_cpu_ops(Dtype::f32, pool_))) {
    const Config config = Config::parse(kConfig, "config.json");
    const Architecture& architecture = architecture_of("mixtral");
    spec_ = architecture.spec(config);
    const auto source = random_source();
    lm_ = std::make_unique<CausalLM>(
        spec_, load_weights(architecture, spec_, *source, *ops_), *ops_, comm_,
        ForwardLimits{.max_tokens = 8, .max_sequences = 2, .max_logit_rows = 8});
    const Tensor block = ops_->kv_layout(1, spec_.attention);
    const auto bytes = static_cast<size_t>(block.shape.size() * size_of(block.dtype));
    for (Buffer* b : {&k_, &v_}) *b = Buffer(bytes);
    layers_ = {
        {view(k_.data(), block.dtype, block.shape), view(v_.data(), block.dtype, block.shape)}};
  }

  // What is summed over ranks in a pass of three tokens, with a pair of rank 2 at one site.
  std::vector<std::vector<float>> parts_with(const Site* site, int64_t in, int64_t out) {
    const int32_t index = site == nullptr ? 0 : spec_.sites()(*site);
    std::vector<float> a(static_cast<size_t>(2 * in), 0.25F), b(static_cast<size_t>(2 * out), 0.5F);
    Buffer packed_a(ops_->lora_a_bytes(2, in)), packed_b(ops_->lora_b_bytes(out, 2));
    ops_->pack_lora_a(packed_a.data(), view(a.data(), Dtype::f32, {2, in}));
    ops_->pack_lora_b(packed_b.data(), view(b.data(), Dtype::f32, {out, 2}));
    std::vector<SitePatch> patches(static_cast<size_t>(spec_.sites().size()));
    if (site != nullptr) {
      patches[static_cast<size_t>(index)] = {packed_a.data(), packed_b.data(), 2, 1.0F, nullptr};
    }
    const std::vector<AdapterView> views{{patches, false}};
    const std::vector<int32_t> ids{3, 1, 2}, positions{0, 1, 2}, lens{3, 3, 3}, cu{0, 3}, kv{3},
        table{0}, adapters{0};
    comm_.parts.clear();
    lm_->forward({ids, positions, lens, cu, kv, table, 1, positions, adapters, positions}, layers_,
                 views);
    return comm_.parts;
  }

  ThreadPool pool_;
  std::unique_ptr<Ops> ops_;
  RecordingComm comm_;
  Spec spec_;
  std::unique_ptr<CausalLM> lm_;
  Buffer k_, v_;
  std::vector<KvLayer> layers_;
};

// On a row-parallel linear each rank holds a part of the input: its share of B (A x) must be in
// what it gives to the sum.
TEST_F(AdapterOrder, lorax_fault_12_the_adapter_is_added_before_the_sum_over_ranks) {
  const auto base = parts_with(nullptr, 32, 32);
  ASSERT_EQ(base.size(), 3U);  // embedding, attention, experts
  const Site o{SiteKind::o, 0};
  const auto with_o = parts_with(&o, 32, 32);
  EXPECT_NE(with_o[1], base[1]);
  const Site down0{SiteKind::down, 0, 0};
  const Site down1{SiteKind::down, 0, 1};
  const auto with_0 = parts_with(&down0, 48, 32);
  const auto with_1 = parts_with(&down1, 48, 32);
  EXPECT_EQ(with_0[1], base[1]);
  EXPECT_TRUE(with_0[2] != base[2] || with_1[2] != base[2]);
}

}  // namespace
}  // namespace lorry
