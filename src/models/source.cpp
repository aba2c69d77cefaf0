#include "models/source.h"

#include <array>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/files.h"
#include "base/float16.h"
#include "models/architecture.h"
#include "models/synthetic.h"
#include "weights/quantised.h"

namespace lorry {

namespace {

constexpr std::string_view kWeight = ".weight";

class CheckpointSource final : public TensorSource {
 public:
  explicit CheckpointSource(Checkpoint checkpoint)
      : checkpoint_(std::move(checkpoint)),
        reader_(checkpoint_, read_quant_scheme(checkpoint_.config())) {}

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
  void will_need(const Slice& s) const override { checkpoint_.will_need(s.name, s.first, s.count); }
  void release() override { checkpoint_.release(); }
  int64_t file_bytes() const override { return checkpoint_.total_bytes(); }
  std::vector<std::string> unused() const override { return checkpoint_.unused(); }

 private:
  static std::string_view module_of(std::string_view name) {
    return name.substr(0, name.size() - kWeight.size());
  }

  Checkpoint checkpoint_;
  QuantReader reader_;
  Buffer wide_;
};

class PackedSource final : public TensorSource {
 public:
  explicit PackedSource(PackedFile file) : file_(std::move(file)) {}

  bool has(std::string_view) const override { return false; }
  const PackedFile* packed() const override { return &file_; }
  int64_t file_bytes() const override { return file_.file_bytes(); }

  Tensor tensor(const std::string& name, const Shape& shape) override {
    const PackedPiece& p = take(name);
    if (p.format != PackedFormat{} || p.shape != shape) {
      wrong(p, fmt::format("values of shape {}", to_string(shape)));
    }
    given_.insert(&p);
    return view(file_.data(p), p.dtype, shape);
  }

  const PackedPiece& piece(const std::string& name, const Weight& w) override {
    const PackedPiece& p = take(name);
    const Shape shape{w.groups, w.out, w.in};
    const int64_t bytes = w.groups * w.group_bytes;
    if (p.format != packed_format(w.format) || p.shape != shape || p.bytes != bytes) {
      wrong(p, fmt::format("{} of shape {} in {} bytes", to_string(w.format), to_string(shape),
                           bytes));
    }
    given_.insert(&p);
    return p;
  }

  void release() override {
    for (const PackedPiece* p : given_) {
      Mapping::release(file_.data(*p), static_cast<size_t>(p->bytes));
    }
    given_.clear();
  }

  std::vector<std::string> unused() const override {
    std::vector<std::string> names;
    for (const PackedPiece& p : file_.info().pieces) {
      if (!used_.contains(p.name)) names.push_back(p.name);
    }
    return names;
  }

 private:
  const PackedPiece& take(const std::string& name) {
    const PackedPiece* p = file_.find(name);
    if (p == nullptr) fail(Code::bad_file, "{}: piece {} is missing", file_.path(), quote(name));
    used_.insert(name);
    return *p;
  }
  [[noreturn]] void wrong(const PackedPiece& p, const std::string& expected) const {
    fail(Code::bad_file, "{}: piece {} is {} of shape {} in {} bytes; config.json needs {}",
         file_.path(), quote(p.name), to_string(weight_format(p.format)), to_string(p.shape),
         p.bytes, expected);
  }

  PackedFile file_;
  std::set<std::string> used_;
  std::set<const PackedPiece*> given_;  // since the last release()
};

ModelFiles open_packed(const std::string& folder) {
  const std::string path = join_path(folder, "config.json");
  const std::string text = read_file(path);
  ModelFiles files{Config::parse(text, path), {}, {}, {}};
  PackedFile file = PackedFile::open(join_path(folder, std::string(kPackedName)));
  Sha256 sha;
  sha.update(text);
  files.config_sha256 = to_hex(sha.finish());
  files.digest = file.info().source_digest;
  if (files.config_sha256 != file.info().config_sha256) {  // changed since: another model
    Sha256 both;
    both.update(files.digest + files.config_sha256);
    files.digest = to_hex(both.finish());
  }
  files.source = packed_source(std::move(file));
  return files;
}

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
  bool random() const override { return true; }
  uint64_t seed(const std::string& name) const override { return hash_name(name); }

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

const PackedPiece& TensorSource::piece(const std::string& name, const Weight&) {
  LORRY_CHECK(false, "{}: the source is not packed", name);
}

std::unique_ptr<TensorSource> checkpoint_source(Checkpoint checkpoint) {
  return std::make_unique<CheckpointSource>(std::move(checkpoint));
}

std::unique_ptr<TensorSource> packed_source(PackedFile file) {
  return std::make_unique<PackedSource>(std::move(file));
}

ModelFiles open_model(const std::string& model) {
  if (is_synthetic(model)) {
    return {Config::parse(synthetic_config(model), model), {}, {}, random_source()};
  }
  if (PackedFile::in_folder(model)) return open_packed(model);
  Checkpoint checkpoint = Checkpoint::open(model);
  ModelFiles files{
      checkpoint.config(), to_hex(checkpoint.digest()), to_hex(checkpoint.config_digest()), {}};
  files.source = checkpoint_source(std::move(checkpoint));
  return files;
}

std::string to_string(const WeightFormat& f) {
  constexpr std::array<const char*, 4> kNames{"plain", "int8", "int4", "fp8"};
  const std::string kind = kNames[static_cast<size_t>(f.kind)];
  return f.group == 0 ? kind : fmt::format("{} in groups of {}", kind, f.group);
}

WeightFormat weight_format(const PackedFormat& f) {
  using Kind = QuantScheme::Kind;
  return {f.kind == Kind::int8   ? WeightFormat::Kind::int8
          : f.kind == Kind::int4 ? WeightFormat::Kind::int4
          : f.kind == Kind::fp8  ? WeightFormat::Kind::fp8
                                 : WeightFormat::Kind::plain,
          f.group, false};
}

PackedFormat packed_format(const WeightFormat& f) {
  using Kind = QuantScheme::Kind;
  LORRY_CHECK(!f.zeros, "zero points are not packed");
  return {f.kind == WeightFormat::Kind::int8   ? Kind::int8
          : f.kind == WeightFormat::Kind::int4 ? Kind::int4
          : f.kind == WeightFormat::Kind::fp8  ? Kind::fp8
                                               : Kind::none,
          f.group};
}

std::unique_ptr<TensorSource> random_source() { return std::make_unique<RandomSource>(); }

}  // namespace lorry
