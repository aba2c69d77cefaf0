// The public Model, and the forms that a checkpoint may have.
#include "lorry/model.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <numeric>
#include <stdexcept>

#include <gtest/gtest.h>

#include "base/files.h"
#include "engine/harness.h"
#include "ops/scores.h"
#include "weights/checkpoint.h"
#include "weights/slice.h"

namespace lorry::test {
namespace {

ModelOptions small() {
  ModelOptions o;
  o.dtype = Dtype::f32;
  o.threads = 1;
  o.limits.max_tokens = 64;
  o.limits.max_sequences = 4;
  o.limits.max_logit_rows = 64;
  o.kv_blocks = 16;
  return o;
}

// Logits of one sequence in blocks 0, 1, ...
std::vector<float> logits_of(Model& model, const std::vector<int32_t>& ids, int32_t adapter = -1,
                             Want want = Want::logits) {
  const auto n = static_cast<int32_t>(ids.size());
  std::vector<int32_t> positions(ids.size()), lens(ids.size(), n);
  std::iota(positions.begin(), positions.end(), 0);
  const std::vector<int32_t> cu{0, n}, kv{n}, table{0, 1, 2, 3}, adapters{adapter};
  const ForwardOutput out =
      model.forward({ids, positions, lens, cu, kv, table, 4, positions, adapters, positions, want});
  const Tensor& t = want == Want::logits ? out.logits : out.hidden;
  std::vector<float> flat;
  for (int64_t r = 0; r < t.shape[0]; ++r) {
    flat.insert(flat.end(), t.row<const float>(r), t.row<const float>(r) + t.shape[1]);
  }
  return flat;
}

const std::vector<int32_t> kIds{1, 7, 20, 33, 5, 90, 41, 8};

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "lorry_model_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = name;
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string str() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

// Rewrites a per-expert Mixtral checkpoint in the fused spelling of transformers 5.
void write_fused(const std::string& from, const std::string& to) {
  const auto source = SafetensorsFile::open(from + "/model.safetensors", Access::read);
  const Checkpoint checkpoint = Checkpoint::open(from);
  const auto experts = checkpoint.config().integer("num_local_experts", {1, 64});
  const auto dim = checkpoint.config().integer("hidden_size", {1, 4096});
  const auto ffn = checkpoint.config().integer("intermediate_size", {1, 4096});
  std::map<std::string, Tensor> out;
  std::vector<Buffer> memory;
  const auto fused = [&](const std::string& name, Dtype dtype, Shape shape) {
    auto& t = out[name];
    if (!t) {
      memory.emplace_back(static_cast<size_t>(shape.size() * size_of(dtype)));
      t = view(memory.back().data(), dtype, shape);
    }
    return view(t.data, dtype, {shape[0] * shape[1], shape[2]});
  };
  for (const TensorInfo& info : source.tensors()) {
    const Tensor t = source.tensor(info);
    const size_t at = info.name.find(".block_sparse_moe.");
    if (at == std::string::npos) {
      out[info.name] = t;
      continue;
    }
    const std::string mlp = info.name.substr(0, at) + ".mlp.";
    const size_t expert_at = info.name.find("experts.");
    if (expert_at == std::string::npos) {
      out[mlp + "gate.weight"] = t;
      continue;
    }
    const int64_t e = std::stoll(info.name.substr(expert_at + 8));
    if (info.name.ends_with("w2.weight")) {
      const Tensor down = fused(mlp + "experts.down_proj", t.dtype, {experts, dim, ffn});
      copy(rows(down, e * dim, dim), t);
    } else {
      const Tensor both = fused(mlp + "experts.gate_up_proj", t.dtype, {experts, 2 * ffn, dim});
      copy(rows(both, (2 * e + (info.name.ends_with("w3.weight") ? 1 : 0)) * ffn, ffn), t);
    }
  }
  write_safetensors(to + "/model.safetensors", out);
  write_file(to + "/config.json", read_file(from + "/config.json"));
}

TEST(Model, both_spellings_of_mixtral_give_the_same_bits) {
  const Folder folder;
  write_fused(golden("mixtral-base/model"), folder.str());
  Model a(golden("mixtral-base/model"), small());
  Model b(folder.str(), small());
  EXPECT_EQ(logits_of(a, kIds), logits_of(b, kIds));
}

TEST(Model, adapters_of_either_generation_load_on_either_spelling) {
  const Folder folder;
  write_fused(golden("mixtral-base/model"), folder.str());
  Model per_expert(golden("mixtral-base/model"), small());
  Model fused(folder.str(), small());
  for (const char* name : {"experts-r8", "router-r4"}) {
    const std::string adapter = golden("mixtral-base/adapters/") + name;
    const auto want = logits_of(per_expert, kIds, per_expert.load_adapter(adapter));
    EXPECT_EQ(want, logits_of(fused, kIds, fused.load_adapter(adapter))) << name;
    EXPECT_NE(want, logits_of(per_expert, kIds)) << name;
  }
}

TEST(Model, the_best_are_found_without_the_logits) {
  Model model(golden("mixtral-base/model"), small());
  const auto n = static_cast<int32_t>(kIds.size());
  std::vector<int32_t> positions(kIds.size()), lens(kIds.size(), n);
  std::iota(positions.begin(), positions.end(), 0);
  const std::vector<int32_t> cu{0, n}, kv{n}, table{0}, adapters{-1};
  ForwardInput in{kIds, positions, lens, cu, kv, table, 1, positions, adapters, positions};
  const ForwardOutput all = model.forward(in);
  std::vector<int32_t> expected;
  for (int64_t r = 0; r < n; ++r) {
    const float* row = all.logits.row<const float>(r);
    expected.push_back(arg_max({row, static_cast<size_t>(all.logits.cols())}));
  }
  const auto best_of = [&](const ForwardOutput& out) {
    const auto* best = out.best.row<const int32_t>(0);
    return std::vector<int32_t>(best, best + out.best.cols());
  };
  EXPECT_EQ(best_of(all), expected);
  in.want = Want::best;
  const ForwardOutput alone = model.forward(in);
  EXPECT_FALSE(alone.logits);
  EXPECT_EQ(best_of(alone), expected);
  in.want = Want::hidden;
  EXPECT_FALSE(model.forward(in).best);
}

TEST(Model, hidden_states_are_what_the_head_reads) {
  Model model(golden("mixtral-base/model"), small());
  const auto hidden = logits_of(model, kIds, -1, Want::hidden);
  EXPECT_EQ(hidden.size(), kIds.size() * static_cast<size_t>(model.dim()));
  const auto logits = logits_of(model, kIds);
  // One logit by hand: a row of lm_head times the hidden state.
  Checkpoint checkpoint = Checkpoint::open(golden("mixtral-base/model"));
  const Tensor stored = checkpoint.tensor("lm_head.weight", {model.vocab(), model.dim()});
  std::vector<float> head(static_cast<size_t>(model.vocab()) * static_cast<size_t>(model.dim()));
  copy(view(head.data(), Dtype::f32, stored.shape), stored);
  double sum = 0;
  for (size_t i = 0; i < static_cast<size_t>(model.dim()); ++i) {
    sum += static_cast<double>(hidden[i]) *
           static_cast<double>(head[3 * static_cast<size_t>(model.dim()) + i]);
  }
  EXPECT_NEAR(logits[3], sum, 1e-4);
}

TEST(Model, E12_an_unknown_tensor_in_the_checkpoint_is_refused) {
  const Folder folder;
  const auto source =
      SafetensorsFile::open(golden("mixtral-base/model/model.safetensors"), Access::read);
  std::map<std::string, Tensor> tensors;
  for (const TensorInfo& info : source.tensors()) tensors[info.name] = source.tensor(info);
  std::vector<float> extra(4);
  tensors["model.layers.0.self_attn.q_proj.bias"] = view(extra.data(), Dtype::f32, {4});
  write_safetensors(folder.str() + "/model.safetensors", tensors);
  write_file(folder.str() + "/config.json", read_file(golden("mixtral-base/model/config.json")));
  try {
    Model model(folder.str(), small());
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("q_proj.bias"), std::string::npos) << e.what();
  }
}

TEST(Model, E12_a_missing_expert_is_named) {
  const Folder folder;
  const auto source =
      SafetensorsFile::open(golden("mixtral-base/model/model.safetensors"), Access::read);
  std::map<std::string, Tensor> tensors;
  for (const TensorInfo& info : source.tensors()) tensors[info.name] = source.tensor(info);
  const std::string missing = "model.layers.1.block_sparse_moe.experts.1.w2.weight";
  ASSERT_EQ(tensors.erase(missing), 1U);
  write_safetensors(folder.str() + "/model.safetensors", tensors);
  write_file(folder.str() + "/config.json", read_file(golden("mixtral-base/model/config.json")));
  try {
    Model model(folder.str(), small());
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find(missing), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace lorry::test
