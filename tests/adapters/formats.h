// What the tests of PEFT's formats share: a made-up base model, and drafts loaded for it.
#pragma once
#include "adapters/support.h"

namespace lorry::test {

constexpr int64_t kHidden = 8, kWidth = 6, kVocab = 10, kExperts = 4;

// Element (row, col) of the base matrix of a site.
inline double base(const Site& site, int64_t row, int64_t col) {
  const double seed = 3 * static_cast<double>(site.kind) + site.layer + 0.5 * site.expert;
  return double{static_cast<float>(
      std::sin(seed + 0.31 * static_cast<double>(row) + 1.7 * static_cast<double>(col)))};
}

inline void base_rows_of(Tensor y, const Site& site, int64_t first) {
  for (int64_t r = 0; r < y.rows(); ++r) {
    for (int64_t c = 0; c < y.cols(); ++c) {
      y.row<float>(r)[c] = static_cast<float>(base(site, first + r, c));
    }
  }
}

inline std::string config(const std::string& fields) {
  return R"({"peft_type": "LORA", "peft_version": "0.21.2", "r": 2, "lora_alpha": 4, )" + fields +
         "}";
}

class Formats : public testing::Test {
 protected:
  Formats() : table_(mixtral_sites({2, kExperts, kHidden, 8, 4, kWidth, kVocab})) {}

  std::unique_ptr<Adapter> load(Draft draft, const SiteTable& table) {
    return load_adapter(draft.write(temp_.path() + "/a"), {&table, &ops_, base_rows_of});
  }
  std::unique_ptr<Adapter> load(Draft draft) { return load(std::move(draft), table_); }
  void refused(Code code, const std::vector<std::string>& parts, const Draft& draft) {
    expect_error(code, parts, [&] { load(draft); });
  }
  SitePatch patch(const Adapter& a, const Site& site) const {
    return a.view().patches[static_cast<size_t>(table_.index(site))];
  }
  static double value(const Draft& d, const std::string& name, int64_t i) {
    return double{d.tensors.at("base_model.model." + name).second[static_cast<size_t>(i)]};
  }
  static const float* floats(const std::byte* p) { return reinterpret_cast<const float*>(p); }

  const std::string q0_ = "model.layers.0.self_attn.q_proj";
  const std::string embed_ = "model.embed_tokens";
  TempFolder temp_;
  PackOps ops_;
  SiteTable table_;
};

}  // namespace lorry::test
