#include "bench/adapters/random_adapters.h"

#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

#include <fmt/format.h>

#include "base/float16.h"
#include "weights/safetensors.h"

namespace lorry::bench {

namespace {

constexpr std::array<int32_t, 10> kRanks = {4, 8, 12, 16, 20, 24, 32, 40, 48, 64};

// Uniform in [-1, 1): SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  float next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23F - 1.0F;
  }

 private:
  uint64_t state_;
};

bool is_adapted(SiteKind kind, bool all_linears) {
  switch (kind) {
    case SiteKind::q:
    case SiteKind::k:
    case SiteKind::v:
    case SiteKind::o:
      return true;
    case SiteKind::router:
    case SiteKind::gate:
    case SiteKind::up:
    case SiteKind::down:
      return all_linears;
    default:
      return false;
  }
}

void write_config(const std::string& folder, int32_t rank) {
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/adapter_config.json") << fmt::format(
      R"({{"peft_type": "LORA", "r": {}, "lora_alpha": {}, "peft_version": "0.19.0"}})", rank,
      rank);
}

}  // namespace

int32_t rank_of(int64_t index) { return kRanks[static_cast<size_t>(index * 7 % 10)]; }

int64_t write_adapter(const std::string& folder, const SiteTable& sites, const RandomAdapter& what,
                      uint64_t seed) {
  const int32_t rank = what.rank;
  write_config(folder, rank);
  Random random(seed * 0x2545f4914f6cdd1dU + 1);
  std::map<std::string, std::vector<bf16>> values;
  std::map<std::string, Tensor> tensors;
  int64_t bytes = 0;
  const auto add = [&](const std::string& name, int64_t rows, int64_t cols, float scale) {
    std::vector<bf16>& v = values["base_model.model." + name];
    v.resize(static_cast<size_t>(rows * cols));
    for (bf16& x : v) x = to_bf16(scale * random.next());
    tensors["base_model.model." + name] = view(v.data(), Dtype::bf16, {rows, cols});
    bytes += rows * cols * 2;
  };
  for (const SiteInfo& s : sites.sites) {
    if (!is_adapted(s.site.kind, what.all_linears)) continue;
    // Deltas of about a third of what the linear itself does, whatever the rank.
    add(s.module + ".lora_A.weight", rank, s.in, 1.7F / std::sqrt(static_cast<float>(s.in)));
    add(s.module + ".lora_B.weight", s.out, rank, 0.6F / std::sqrt(static_cast<float>(rank)));
  }
  write_safetensors(folder + "/adapter_model.safetensors", tensors);
  return bytes;
}

void write_bad_adapter(const std::string& folder, const SiteTable& sites, int64_t index) {
  write_adapter(folder, sites, {16, true}, static_cast<uint64_t>(index));
  const std::string weights = folder + "/adapter_model.safetensors";
  switch (index % 5) {
    case 0:  // the ranks of the config are not those of the tensors
      return write_config(folder, 8);
    case 1:  // half of the file is missing
      return std::filesystem::resize_file(weights, std::filesystem::file_size(weights) / 2);
    case 2:
      std::ofstream(folder + "/adapter_config.json") << "{\"peft_type\": \"LORA\", \"r\": ";
      return;
    case 3: {  // a NaN in the last tensor: found only when everything is read
      std::fstream file(weights, std::ios::in | std::ios::out | std::ios::binary);
      file.seekp(-2, std::ios::end);
      file.write("\xff\x7f", 2);
      return;
    }
    default:
      std::filesystem::remove(weights);
      std::ofstream(folder + "/adapter_model.bin") << "pickle";
  }
}

}  // namespace lorry::bench
