#include "models/source.h"

#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/float16.h"
#include "weights/quantised.h"

namespace lorry {

namespace {

constexpr std::string_view kWeight = ".weight";

class CheckpointSource final : public TensorSource {
 public:
  explicit CheckpointSource(Checkpoint& checkpoint)
      : checkpoint_(checkpoint), reader_(checkpoint, read_quant_scheme(checkpoint.config())) {}

  bool has(std::string_view name) const override {
    return checkpoint_.has(name) || quantised(name);
  }
  QuantScheme scheme() const override { return reader_.scheme(); }

  Tensor tensor(const std::string& name, const Shape& shape) override {
    if (!quantised(name)) return checkpoint_.tensor(name, shape);
    const int64_t out = shape.size() / shape[-1];
    const QuantMatrix m = matrix(name, out, shape[-1]);
    wide_ = Buffer(Arena::tensor_bytes(Dtype::f32, shape));
    dequantise(view(wide_.data(), Dtype::f32, {out, shape[-1]}), m, 0);
    return view(wide_.data(), Dtype::f32, shape);
  }

  // Where a module has its plain tensor too, that one is never asked for, and refused as unused.
  bool quantised(std::string_view name) const override {
    return name.ends_with(kWeight) && reader_.has(module_of(name));
  }
  std::vector<int32_t> order(const std::string& name, int64_t in) override {
    return reader_.order(std::string(module_of(name)), in);
  }
  QuantMatrix matrix(const std::string& name, int64_t out, int64_t in) override {
    return reader_.read(std::string(module_of(name)), out, in);
  }

 private:
  static std::string_view module_of(std::string_view name) {
    return name.substr(0, name.size() - kWeight.size());
  }

  Checkpoint& checkpoint_;
  QuantReader reader_;
  Buffer wide_;
};

uint64_t hash_name(const std::string& name) {
  uint64_t h = 0xcbf29ce484222325U;  // FNV-1a
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return h;
}

class RandomSource final : public TensorSource {
 public:
  bool has(std::string_view name) const override {
    return name.find("experts.gate_up_proj") == std::string_view::npos;
  }

  Tensor tensor(const std::string& name, const Shape& shape) override {
    values_.resize(static_cast<size_t>(shape.size()));
    if (shape.rank == 1) {
      for (bf16& v : values_) v = to_bf16(1.0F);
    } else {
      fill(hash_name(name), std::sqrt(3.0F / static_cast<float>(shape[-1])));
    }
    return view(values_.data(), Dtype::bf16, shape);
  }

 private:
  // splitmix64, four 16-bit numbers a draw.
  void fill(uint64_t state, float scale) {
    uint64_t bits = 0;
    for (size_t i = 0; i < values_.size(); ++i) {
      if (i % 4 == 0) {
        state += 0x9e3779b97f4a7c15U;
        bits = state;
        bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9U;
        bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebU;
        bits ^= bits >> 31;
      }
      const auto r = static_cast<int16_t>(bits >> (16 * (i % 4)));
      values_[i] = to_bf16(static_cast<float>(r) * (scale / 32768.0F));
    }
  }

  std::vector<bf16> values_;
};

}  // namespace

std::vector<int32_t> TensorSource::order(const std::string& name, int64_t) {
  LORRY_CHECK(false, "{} is not quantised", name);
}
QuantMatrix TensorSource::matrix(const std::string& name, int64_t, int64_t) {
  LORRY_CHECK(false, "{} is not quantised", name);
}

std::unique_ptr<TensorSource> checkpoint_source(Checkpoint& checkpoint) {
  return std::make_unique<CheckpointSource>(checkpoint);
}

std::unique_ptr<TensorSource> random_source() { return std::make_unique<RandomSource>(); }

}  // namespace lorry
