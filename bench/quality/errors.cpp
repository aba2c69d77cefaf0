// bench_errors: how far quantised weights are from the bf16 ones, for each kind of matrix: the root
// of the mean square of the difference over that of the weights, over all layers and experts.
#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cli/model_flags.h"
#include "engine/loaded_model.h"

namespace lorry::bench {
namespace {

struct Error2 {
  double difference = 0, weights = 0;
  double relative() const { return std::sqrt(difference / weights); }
};

std::unique_ptr<LoadedModel> load(const std::string& folder, const std::string& quantize,
                                  Log& log) {
  EngineOptions o;
  o.model = folder;
  o.kv_tokens = 4096;
  o.adapter_memory = 1 << 20;
  std::string note;
  o.formats = parse_quantize({quantize, !quantize.empty()}, note);
  return load_model(o, log);
}

void add(Error2& e, const LoadedModel& a, const Linear& x, const LoadedModel& b, const Linear& y) {
  constexpr int64_t kRows = 64;
  std::vector<float> memory(static_cast<size_t>(2 * kRows * x.w.in));
  for (int64_t g = 0; g < x.w.groups; ++g) {
    for (int64_t first = 0; first < x.w.out; first += kRows) {
      const int64_t n = std::min(kRows, x.w.out - first);
      const Tensor p = view(memory.data(), Dtype::f32, {n, x.w.in});
      const Tensor q = view(memory.data() + kRows * x.w.in, Dtype::f32, {n, x.w.in});
      a.ops->unpack(p, x.w, g, first);
      b.ops->unpack(q, y.w, g, first);
      for (int64_t i = 0; i < n * x.w.in; ++i) {
        const double w = p.row<const float>(0)[i];
        const double d = q.row<const float>(0)[i] - w;
        e.difference += d * d;
        e.weights += w * w;
      }
    }
  }
}

using Errors = std::array<Error2, 5>;
constexpr std::array<const char*, 5> kKinds{"q, k, v", "o", "gate, up", "down", "head"};

Errors compare(const LoadedModel& a, const LoadedModel& b) {
  Errors e;
  const ModelWeights& x = a.lm->weights();
  const ModelWeights& y = b.lm->weights();
  for (size_t i = 0; i < x.layers.size(); ++i) {
    add(e[0], a, x.layers[i].wqkv, b, y.layers[i].wqkv);
    add(e[1], a, x.layers[i].wo, b, y.layers[i].wo);
    add(e[2], a, x.layers[i].gate_up, b, y.layers[i].gate_up);
    add(e[3], a, x.layers[i].down, b, y.layers[i].down);
  }
  add(e[4], a, x.head, b, y.head);
  return e;
}

void run(const std::string& name) {
  Log log({.level = LogLevel::warn});
  const ModelPlace place = find_model(name);
  const auto plain = load(place.folder, "", log);
  fmt::print("{:10}", name);
  for (const char* kind : kKinds) fmt::print("{:>10}", kind);
  fmt::print("\n");
  for (const char* format : {"int8", "int4", "int4-32", "fp8"}) {
    const auto quantised = load(place.folder, format, log);
    fmt::print("{:10}", format);
    for (const Error2& e : compare(*plain, *quantised)) fmt::print("{:9.2f}%", 100 * e.relative());
    fmt::print("\n");
  }
}

}  // namespace
}  // namespace lorry::bench

int main(int argc, char** argv) {
  std::string model = "demo";
  CLI::App app("Relative errors of quantised weights, by kind of matrix");
  app.add_option("model", model, "Folder, 'demo' (default) or 'demo:dbrx'");
  CLI11_PARSE(app, argc, argv);
  try {
    lorry::bench::run(model);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_errors: %s\n", e.what());
    return 1;
  }
}
