// What the tests of adapters share: an Ops that packs to plain f32, the tables of the golden models
// written out by hand, and folders written on the spot.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "adapters/adapter.h"
#include "base/error.h"
#include "base/files.h"
#include "base/float16.h"
#include "base/json.h"
#include "ops/ops.h"
#include "weights/safetensors.h"
#include "weights/slice.h"

namespace lorry::test {

inline std::string golden_folder() { return std::string(LORRY_SOURCE_DIR) + "/tests/golden"; }

// Runs f, which must throw Error(code) with a message that has every one of `parts`.
template <class F>
void expect_error(Code code, const std::vector<std::string>& parts, F&& f) {
  try {
    f();
    ADD_FAILURE() << "no error; expected one with: " << parts.front();
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(e.what()).find(part), std::string::npos)
          << "'" << part << "' is not in: " << e.what();
    }
  }
}

// Packs A [rank, in] and B [out, rank] as dense f32. Only the packing calls may be used. A gate
// that is shut makes loader threads wait inside pack_lora_a. It says that it computes in `act`.
class PackOps : public Ops {
 public:
  explicit PackOps(Dtype act = Dtype::f32) : act_(act) {}
  Dtype act() const override { return act_; }
  size_t lora_a_bytes(int64_t rank, int64_t in) const override { return bytes(rank, in); }
  size_t lora_b_bytes(int64_t out, int64_t rank) const override { return bytes(out, rank); }
  void pack_lora_a(std::byte* dst, Tensor a) const override {
    std::unique_lock lock(mutex_);
    ++packing_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    copy(dst, a);
  }
  void pack_lora_b(std::byte* dst, Tensor b) const override { copy(dst, b); }

  void shut() {
    std::lock_guard lock(mutex_);
    open_ = false;
  }
  void open() {
    std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  // Until `n` matrices A have been given to pack_lora_a since the start.
  void await_packing(int64_t n) const {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return packing_ >= n; });
  }

  Weight weight_layout(int64_t groups, int64_t out, int64_t in,
                       WeightFormat format) const override {
    return {.dtype = Dtype::f32,
            .format = format,
            .groups = groups,
            .out = out,
            .in = in,
            .group_bytes = out * in * 4};
  }
  void pack_matrix(std::byte* dst, Tensor src, WeightFormat) const override { copy(dst, src); }
  void unpack(Tensor, const Weight&, int64_t, int64_t) const override { unused<int>(); }
  void pack(Weight&, int64_t, int64_t, Tensor, bool) override { unused<int>(); }
  void pack(Weight&, int64_t, int64_t, const QuantRows&, bool) override { unused<int>(); }
  void pack(Weight&, int64_t, int64_t, const PackedRows&, bool) override { unused<int>(); }
  size_t linear_scratch_bytes(int64_t, int64_t) const override { return unused<size_t>(); }
  Tensor kv_layout(int64_t, const AttentionSpec&) const override { return unused<Tensor>(); }
  size_t attention_scratch_bytes(int64_t, const AttentionSpec&) const override {
    return unused<size_t>();
  }
  void embed(Tensor, Tensor, Tensor) override { unused<int>(); }
  void norm(Tensor, Tensor, const Norm&) override { unused<int>(); }
  void linear(Tensor, Tensor, const Weight&, const RowGroups&, Tensor) override { unused<int>(); }
  void adapt(Tensor, Tensor, std::span<const LoraSite>, std::span<const LoraSegment>,
             const LoraPlan&, Tensor) override {
    unused<int>();
  }
  void apply_best(Tensor, Tensor, Tensor, const AdaptedLinear&) override { unused<int>(); }
  void adapt_embedding(Tensor, Tensor, const LoraSite&, std::span<const LoraSegment>,
                       const LoraPlan&, Tensor) override {
    unused<int>();
  }
  void clamp(Tensor, float) override { unused<int>(); }
  void rope(Tensor, Tensor, Tensor) override { unused<int>(); }
  void kv_write(const KvLayer&, Tensor, Tensor, Tensor, const AttentionSpec&) override {
    unused<int>();
  }
  void attention(Tensor, Tensor, const KvLayer&, const AttentionPlan&,
                 const AttentionSpec&) override {
    unused<int>();
  }
  void route(Route&, Tensor, const Routing&) override { unused<int>(); }
  void group(Route&, const LoraPlan&) override { unused<int>(); }
  void gather(Tensor, Tensor, Tensor) override { unused<int>(); }
  void glu(Tensor, Tensor, Activation) override { unused<int>(); }
  void combine(Tensor, Tensor, const Route&) override { unused<int>(); }
  void add(Tensor, std::span<const Tensor>) override { unused<int>(); }
  void add_silu(Tensor, Tensor, Tensor, Tensor) override { unused<int>(); }

 private:
  Dtype act_;
  template <class T>
  static T unused() {
    check_failed(__FILE__, __LINE__, "unused", "loading an adapter calls packing alone");
  }
  static size_t bytes(int64_t rows, int64_t cols) { return static_cast<size_t>(rows * cols) * 4; }
  static void copy(std::byte* dst, const Tensor& t) {
    auto* out = reinterpret_cast<float*>(dst);
    for (int64_t i = 0; i < t.rows(); ++i) {
      for (int64_t j = 0; j < t.cols(); ++j) {
        *out++ = t.dtype == Dtype::f32    ? t.row<const float>(i)[j]
                 : t.dtype == Dtype::bf16 ? to_float(t.row<const bf16>(i)[j])
                                          : to_float(t.row<const f16>(i)[j]);
      }
    }
  }

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable int64_t packing_ = 0;
  bool open_ = true;
};

struct Sizes {
  int32_t layers = 2, experts = 8;
  int64_t hidden = 64, q = 64, kv = 32, width = 80, vocab = 320;
};

// Names of both generations of transformers.
inline SiteTable mixtral_sites(const Sizes& s) {
  using Form = FusedParameter::Form;
  SiteTable t;
  t.index = {s.layers, s.experts};
  for (int32_t l = 0; l < s.layers; ++l) {
    const std::string layer = fmt::format("model.layers.{}.", l);
    t.sites.push_back({layer + "self_attn.q_proj", {SiteKind::q, l}, s.hidden, s.q});
    t.sites.push_back({layer + "self_attn.k_proj", {SiteKind::k, l}, s.hidden, s.kv});
    t.sites.push_back({layer + "self_attn.v_proj", {SiteKind::v, l}, s.hidden, s.kv});
    t.sites.push_back({layer + "self_attn.o_proj", {SiteKind::o, l}, s.q, s.hidden});
    for (const char* router : {"block_sparse_moe.gate", "mlp.gate"}) {
      t.sites.push_back({layer + router, {SiteKind::router, l}, s.hidden, s.experts});
    }
    for (int32_t e = 0; e < s.experts; ++e) {
      const std::string expert = fmt::format("{}block_sparse_moe.experts.{}.", layer, e);
      t.sites.push_back({expert + "w1", {SiteKind::gate, l, e}, s.hidden, s.width});
      t.sites.push_back({expert + "w3", {SiteKind::up, l, e}, s.hidden, s.width});
      t.sites.push_back({expert + "w2", {SiteKind::down, l, e}, s.width, s.hidden});
    }
    const std::string experts = layer + "mlp.experts";
    t.fused.push_back(
        {experts, "gate_up_proj", Form::stacked_gate_up, 0, l, s.hidden, 2 * s.width});
    t.fused.push_back({experts, "down_proj", Form::stacked_down, 1, l, s.width, s.hidden});
    t.fused.push_back({layer + "mlp.gate", "weight", Form::plain, 0, l, s.hidden, s.experts});
    t.sites.push_back({layer + "input_layernorm", {SiteKind::attn_norm, l}, 1, s.hidden});
    t.sites.push_back({layer + "post_attention_layernorm", {SiteKind::ffn_norm, l}, 1, s.hidden});
  }
  t.sites.push_back({"model.embed_tokens", {SiteKind::embed}, s.vocab, s.hidden});
  t.sites.push_back({"model.norm", {SiteKind::final_norm}, 1, s.hidden});
  t.sites.push_back({"lm_head", {SiteKind::lm_head}, s.hidden, s.vocab});
  return t;
}

inline SiteTable dbrx_sites(const Sizes& s) {
  using Form = FusedParameter::Form;
  SiteTable t;
  t.index = {s.layers, s.experts};
  for (int32_t l = 0; l < s.layers; ++l) {
    const std::string block = fmt::format("transformer.blocks.{}.", l);
    const std::string attn = block + "norm_attn_norm.attn.";
    t.sites.push_back({attn + "Wqkv", {SiteKind::qkv, l}, s.hidden, s.q + 2 * s.kv});
    t.sites.push_back({attn + "out_proj", {SiteKind::o, l}, s.q, s.hidden});
    t.sites.push_back({block + "ffn.router.layer", {SiteKind::router, l}, s.hidden, s.experts});
    const std::string mlp = block + "ffn.experts.mlp";
    t.fused.push_back({mlp, "w1", Form::rows_gate, 0, l, s.hidden, s.width});
    t.fused.push_back({mlp, "v1", Form::rows_up, 1, l, s.hidden, s.width});
    t.fused.push_back({mlp, "w2", Form::rows_down_transposed, 2, l, s.width, s.hidden});
    t.sites.push_back({block + "norm_attn_norm.norm_1", {SiteKind::attn_norm, l}, 1, s.hidden});
    t.sites.push_back({block + "norm_attn_norm.norm_2", {SiteKind::ffn_norm, l}, 1, s.hidden});
  }
  t.sites.push_back({"transformer.wte", {SiteKind::embed}, s.vocab, s.hidden});
  t.sites.push_back({"transformer.norm_f", {SiteKind::final_norm}, 1, s.hidden});
  t.sites.push_back({"lm_head", {SiteKind::lm_head}, s.hidden, s.vocab});
  return t;
}

// The table of a case of tests/golden.
inline SiteTable golden_sites(const std::string& name) {
  if (name.starts_with("dbrx")) return dbrx_sites({2, 16, 64, 64, 32, 40, 320});
  if (name == "mixtral-sliding") return mixtral_sites({3, 4, 64, 128, 32, 72, 352});
  return mixtral_sites({});
}

inline std::string text(const json::value& v) { return std::string(v.as_string()); }

inline MergeSpec::Strategy golden_strategy(const std::string& name) {
  using S = MergeSpec::Strategy;
  for (const S s : {S::linear, S::cat, S::ties, S::magnitude_prune}) {
    if (name == to_string(s)) return s;
  }
  ADD_FAILURE() << "unknown strategy " << name;
  return S::linear;
}

// A merge of a golden.json.
inline MergeSpec golden_merge(const json::object& merge) {
  MergeSpec spec;
  spec.strategy = golden_strategy(text(merge.at("combination_type")));
  if (const json::value* d = merge.if_contains("density")) spec.density = d->to_number<double>();
  if (const json::value* m = merge.if_contains("majority_sign_method")) {
    spec.majority_sign =
        text(*m) == "total" ? MergeSpec::MajoritySign::total : MergeSpec::MajoritySign::frequency;
  }
  return spec;
}

// The delta [out, in] that a pair packed by PackOps stands for, row-major.
inline std::vector<double> delta_of(const SitePatch& pair, int64_t in, int64_t out) {
  const auto* a = reinterpret_cast<const float*>(pair.a);
  const auto* b = reinterpret_cast<const float*>(pair.b);
  std::vector<double> delta(static_cast<size_t>(in * out));
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < in; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < pair.rank; ++k) {
        sum += static_cast<double>(b[o * pair.rank + k]) * static_cast<double>(a[k * in + i]);
      }
      delta[static_cast<size_t>(o * in + i)] = static_cast<double>(pair.scale) * sum;
    }
  }
  return delta;
}

// A folder that is removed at the end, with adapters written into it.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "lorry_test_XXXXXX").string();
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = std::filesystem::canonical(name).string();
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// An adapter in the making: config text and f32 tensors.
struct Draft {
  std::string config =
      R"({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "peft_version": "0.21.2"})";
  std::map<std::string, std::pair<Shape, std::vector<float>>> tensors;

  // Values differ by tensor and place; `seed` makes contents differ.
  Draft& add(const std::string& name, Shape shape, float seed = 1) {
    std::vector<float> values(static_cast<size_t>(shape.size()));
    const auto first = static_cast<float>(name.size() + tensors.size());
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = std::sin(first + 0.7F * seed + 1.3F * static_cast<float>(i));
    }
    tensors["base_model.model." + name] = {shape, std::move(values)};
    return *this;
  }
  Draft& pair(const std::string& module, int64_t rank, int64_t in, int64_t out, float seed = 1) {
    add(module + ".lora_A.weight", {rank, in}, seed);
    return add(module + ".lora_B.weight", {out, rank}, seed);
  }
  std::string write(const std::string& folder) {
    std::filesystem::create_directories(folder);
    write_file(folder + "/adapter_config.json", config);
    std::map<std::string, Tensor> views;
    for (auto& [name, t] : tensors) views[name] = view(t.second.data(), Dtype::f32, t.first);
    write_safetensors(folder + "/adapter_model.safetensors", views);
    return folder;
  }
};

// The rows of the checkpoint in one file. Of sharded ones (mixtral-sliding, whose adapters hold no
// copies) there are none.
inline BaseRows golden_rows(const std::string& path, const SiteTable& table) {
  if (!file_exists(path)) return {};
  auto file = std::make_shared<SafetensorsFile>(SafetensorsFile::open(path, Access::read));
  return [file, &table](Tensor y, const Site& site, int64_t first) {
    lorry::copy(y, rows(file->tensor(table.find(site)->module + ".weight"), first, y.rows()));
  };
}

}  // namespace lorry::test
