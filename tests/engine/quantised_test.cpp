// Quantised checkpoints, packed by the projects that define the formats, against the logits that
// transformers gives with their dequantised weights; and models quantised at load.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include <boost/json/value_to.hpp>
#include <gtest/gtest.h>

#include "base/json.h"
#include "engine/harness.h"
#include "engine/one_sequence.h"
#include "weights/safetensors.h"

namespace lorry::test {
namespace {

std::vector<std::string> quantised_cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden("quantised"))) {
    if (entry.is_directory()) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

struct QuantisedCase {
  explicit QuantisedCase(const std::string& name)
      : folder(golden("quantised/" + name)),
        file(SafetensorsFile::open(folder + "/logits.safetensors", Access::read)) {
    const json::value doc = parse_json_file(folder + "/case.json");
    for (const json::value& p : doc.at("prompts").as_array()) {
      prompts.push_back(json::value_to<std::vector<int32_t>>(p));
    }
  }
  Tensor logits(size_t prompt) const {
    return file.tensor("p" + std::to_string(prompt) + ".logits");
  }

  std::string folder;
  SafetensorsFile file;
  std::vector<std::vector<int32_t>> prompts;
};

EngineOptions options_of(const std::string& model, Dtype dtype) {
  EngineOptions o;
  o.model = model;
  o.dtype = dtype;
  o.threads = 2;
  o.kv_tokens = 2048;
  o.adapter_memory = 1 << 20;
  o.check_ops = true;
  return o;
}

// Of all logits: the largest and the mean absolute difference, and the spread of what is wanted.
struct Difference {
  double largest = 0, mean = 0, deviation = 0;
};

Difference compare(const QuantisedCase& c, const EngineOptions& options) {
  Log log({.level = LogLevel::error});
  const auto model = load_model(options, log);
  Difference d;
  double square = 0, sum = 0, n = 0;
  for (size_t i = 0; i < c.prompts.size(); ++i) {
    const Tensor want = c.logits(i);
    const Tensor got = logits_of(*model, c.prompts[i], {});
    d.largest = std::max(d.largest, double{largest_difference(got, want)});
    for (int64_t t = 0; t < want.shape[0]; ++t) {
      for (int64_t v = 0; v < want.shape[1]; ++v) {
        const double w = want.row<const float>(t)[v];
        d.mean += std::abs(got.row<const float>(t)[v] - w);
        sum += w;
        square += w * w;
        ++n;
      }
    }
  }
  d.mean /= n;
  d.deviation = std::sqrt(square / n - (sum / n) * (sum / n));
  return d;
}

class Quantised : public testing::TestWithParam<std::string> {};

TEST_P(Quantised, f32_logits_are_those_of_the_dequantised_weights) {
  const QuantisedCase c(GetParam());
  EXPECT_LE(compare(c, options_of(c.folder, Dtype::f32)).largest, 2e-4);
}

// Activations are rounded to 8 bits (or with fp8 to bf16).
TEST_P(Quantised, bf16_logits_are_near) {
  const QuantisedCase c(GetParam());
  const Difference d = compare(c, options_of(c.folder, Dtype::bf16));
  EXPECT_LE(d.mean, 0.05 * d.deviation);
}

TEST_P(Quantised, quantising_it_again_is_refused) {
  EngineOptions o = options_of(golden("quantised/" + GetParam()), Dtype::bf16);
  o.formats.linears = {WeightFormat::Kind::int8, 0, false};
  Log log({.level = LogLevel::error});
  try {
    const auto model = load_model(o, log);
    FAIL() << "it was loaded";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("is quantised already"), std::string::npos) << e.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Quantised, testing::ValuesIn(quantised_cases()),
                         [](const auto& test) { return test_name(test.param); });

}  // namespace
}  // namespace lorry::test
