// The golden cases of tests/golden: prompts and adapters with the logits that transformers and PEFT
// give, and how far ours may be from them.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <boost/json/value_to.hpp>
#include <gtest/gtest.h>

#include "base/json.h"
#include "engine/harness.h"
#include "weights/safetensors.h"

namespace lorry::test {

// A folder of tests/golden a line; its golden.json may name the model of another.
inline const std::vector<std::string> kGoldenCases = {
    "mixtral-base",       "mixtral-sliding", "mixtral-v5-target-parameters",
    "dbrx-base",          "mixtral-dora",    "mixtral-saved",
    "mixtral-embeddings", "mixtral-targets", "mixtral-alora",
    "mixtral-tied",       "dbrx-saved",      "dbrx-norm2-noclip",
};

struct GoldenRun {
  std::string adapter;
  Prompt prompt;
  Tensor logits, router_gap;
  double min_router_gap = 0;
  std::vector<int32_t> generated;
  std::vector<double> margins, router_gaps;
};

struct GoldenCase {
  explicit GoldenCase(const std::string& case_name)
      : name(case_name),
        file(SafetensorsFile::open(golden(case_name + "/golden.safetensors"), Access::read)) {
    const json::value doc = parse_json_file(golden(case_name + "/golden.json"));
    const json::value* elsewhere = doc.as_object().if_contains("model");
    model = golden(case_name + "/" +
                   (elsewhere == nullptr ? "model" : json::value_to<std::string>(*elsewhere)));
    const auto ints = [](const json::value& v) { return json::value_to<std::vector<int32_t>>(v); };
    const auto doubles = [](const json::value& v) {
      return json::value_to<std::vector<double>>(v);
    };
    for (const json::value& v : doc.at("runs").as_array()) {
      GoldenRun r;
      if (!v.at("adapter").is_null()) r.adapter = v.at("adapter").as_string().c_str();
      const auto prompt = v.at("prompt").as_string();
      r.prompt = {ints(doc.at("prompts").at(std::string_view(prompt))), r.adapter};
      r.logits = file.tensor(std::string_view(v.at("logits").as_string()));
      r.router_gap = file.tensor(std::string_view(v.at("router_gap").as_string()));
      const json::value& g = v.at("generated");
      r.generated = ints(g.at("tokens"));
      r.margins = doubles(g.at("margins"));
      r.router_gaps = doubles(g.at("router_gaps"));
      if (!r.adapter.empty()) adapters.insert(r.adapter);
      runs.push_back(std::move(r));
    }
  }
  EngineOptions options(Dtype dtype) const {
    EngineOptions o = golden_options(name, {adapters.begin(), adapters.end()});
    o.model = model;
    o.dtype = dtype;
    o.adapter_memory = 256 << 20;
    return o;
  }

  std::string name, model;
  SafetensorsFile file;
  std::set<std::string> adapters;
  std::vector<GoldenRun> runs;
};

// What a run computes with, and how near it must come. Keys and values in int8 have errors of about
// 0.6 % each (a step of max / 127, the largest of 16 to 64 values being 2 to 2.5 deviations), three
// times those of bf16.
struct GoldenMode {
  std::string name;
  Dtype dtype;
  KvFormat kv;
  double part;  // of the logits' deviation, see expect_close; 0: expect_f32
};
inline const std::vector<GoldenMode> kGoldenModes = {
    {"f32", Dtype::f32, KvFormat::act, 0},
    {"bf16", Dtype::bf16, KvFormat::act, 0.02},
    {"f16", Dtype::f16, KvFormat::act, 0.003},
    {"f32_kv_int8", Dtype::f32, KvFormat::int8, 0.02},
    {"bf16_kv_int8", Dtype::bf16, KvFormat::int8, 0.025}};
inline const GoldenMode& kGoldenF32 = kGoldenModes.front();

inline void expect_f32(const GoldenRun& run, const Collector& got, const std::string& what) {
  ASSERT_EQ(got.n_rows, run.logits.shape[0]) << what;
  EXPECT_FALSE(got.out_of_order) << what;
  const auto n = static_cast<size_t>(run.logits.shape.size());
  const float* want = run.logits.row<const float>(0);
  double worst = 0;
  for (size_t i = 0; i < n; ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(got.logits[i]) - want[i]));
  }
  EXPECT_LE(worst, 2e-4) << what;
}

// Positions at and before which every routing decision was clear. `part`: of the logits' deviation.
inline void expect_close(const GoldenRun& run, const Collector& got, double part,
                         const std::string& what) {
  const int64_t vocab = run.logits.shape[1];
  double sum = 0, square = 0, mean = 0;
  int64_t n = 0;
  for (int64_t t = 0; t < run.logits.shape[0]; ++t) {
    if (run.router_gap.row<const float>(0)[t] <= 0.05F) break;
    const float* want = run.logits.row<const float>(t);
    const float* have = got.logits.data() + t * vocab;
    for (int64_t v = 0; v < vocab; ++v) {
      sum += std::abs(static_cast<double>(have[v]) - static_cast<double>(want[v]));
      mean += static_cast<double>(want[v]);
      square += static_cast<double>(want[v]) * static_cast<double>(want[v]);
    }
    n += vocab;
    std::vector<float> sorted(want, want + vocab);
    std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<>());
    if (sorted[0] - sorted[1] > 0.1F) {
      EXPECT_EQ(std::max_element(have, have + vocab) - have,
                std::max_element(want, want + vocab) - want)
          << what << " position " << t;
    }
  }
  if (n == 0) return;
  const auto count = static_cast<double>(n);
  const double deviation = std::sqrt(square / count - (mean / count) * (mean / count));
  EXPECT_LE(sum / count, part * deviation) << what;
}

// Every prompt of the case with its adapter, asking for logits.
inline std::vector<Request> logits_requests(const GoldenCase& c) {
  std::vector<Request> all;
  for (const GoldenRun& r : c.runs) all.push_back(logits_request(r.prompt));
  return all;
}

// Of logits_requests.
inline void expect_golden(const GoldenCase& c, const GoldenMode& mode,
                          const std::vector<std::shared_ptr<Collector>>& got) {
  for (size_t i = 0; i < got.size(); ++i) {
    const GoldenRun& run = c.runs[i];
    const std::string what = c.name + "/" + run.adapter + " run " + std::to_string(i);
    ASSERT_NE(got[i]->finish->reason, FinishReason::failed)
        << what << ": " << got[i]->finish->error->what();
    if (mode.part == 0) {
      expect_f32(run, *got[i], what);
    } else {
      expect_close(run, *got[i], mode.part, what);
    }
  }
}

}  // namespace lorry::test
