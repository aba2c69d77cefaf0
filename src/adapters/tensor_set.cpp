#include "adapters/tensor_set.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/float16.h"
#include "weights/safetensors.h"

namespace lorry {

namespace {

// The largest finite value: what lies beyond would be infinite once packed.
float largest_of(Dtype act) { return act == Dtype::f16 ? 65504.0F : 0x1.fep127F; }

float element(const Tensor& t, int64_t i) {
  switch (t.dtype) {
    case Dtype::f32:
      return reinterpret_cast<const float*>(t.data)[i];
    case Dtype::f16:
      return to_float(reinterpret_cast<const f16*>(t.data)[i]);
    default:
      return to_float(reinterpret_cast<const bf16*>(t.data)[i]);
  }
}

// The place of the block of values that holds the first one out of range, or the size of t. Values
// are compared as integers without their sign, a block at a time: several times as fast as one by
// one, which matters when adapters come and go.
template <class Bits>
int64_t first_suspect(const Bits* x, int64_t n, Bits largest) {
  constexpr int64_t kBlock = 512;
  constexpr Bits kMagnitude = std::numeric_limits<Bits>::max() >> 1;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    Bits most = 0;
    for (int64_t k = 0; k < kBlock; ++k) {
      most = std::max<Bits>(most, static_cast<Bits>(x[i + k] & kMagnitude));
    }
    if (most > largest) return i;
  }
  return i;
}

int64_t first_suspect(const Tensor& t, float largest) {
  const int64_t n = t.shape.size();
  switch (t.dtype) {
    case Dtype::f32:
      return first_suspect(reinterpret_cast<const uint32_t*>(t.data), n,
                           std::bit_cast<uint32_t>(largest));
    case Dtype::f16:
      return first_suspect(reinterpret_cast<const uint16_t*>(t.data), n, uint16_t{0x7bff});
    default:
      return first_suspect(reinterpret_cast<const uint16_t*>(t.data), n,
                           static_cast<uint16_t>(std::bit_cast<uint32_t>(largest) >> 16));
  }
}

class FileTensors final : public TensorSet {
 public:
  FileTensors(const std::string& path, int64_t max_bytes)
      : file_(SafetensorsFile::open(path, Access::mapped, max_bytes)), max_bytes_(max_bytes) {}

  const std::string& path() const override { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const override { return file_.tensors(); }
  Tensor tensor(const TensorInfo& info) const override { return file_.tensor(info); }

  void load(Dtype act) override {
    SafetensorsFile now = SafetensorsFile::open(path(), Access::read, max_bytes_);
    if (now.header_digest() != file_.header_digest()) {
      fail(Code::bad_file, "{}: the file changed while it was loaded; load it again", path());
    }
    file_ = std::move(now);
    check_values(act);
  }

 private:
  SafetensorsFile file_;  // mapped, with data that nobody looks at, until load()
  int64_t max_bytes_;
};

class NoTensors final : public TensorSet {
 public:
  explicit NoTensors(std::string path) : path_(std::move(path)) {}

  const std::string& path() const override { return path_; }
  const std::vector<TensorInfo>& tensors() const override { return none_; }
  Tensor tensor(const TensorInfo&) const override { return {}; }
  void load(Dtype) override {}

 private:
  std::string path_;
  std::vector<TensorInfo> none_;
};

}  // namespace

int64_t TensorSet::bytes() const {
  int64_t sum = 0;
  for (const TensorInfo& t : tensors()) sum += t.end - t.begin;
  return sum;
}

void TensorSet::hash(Sha256& to, std::vector<const TensorInfo*> of) const {
  std::sort(of.begin(), of.end(), [](const auto* x, const auto* y) { return x->name < y->name; });
  of.erase(std::unique(of.begin(), of.end()), of.end());
  for (const TensorInfo* info : of) {
    const Tensor t = tensor(*info);
    to.update_value(t.dtype);
    to.update({t.data, static_cast<size_t>(info->end - info->begin)});
  }
}

void TensorSet::check_values(Dtype act) const {
  const float largest = largest_of(act);
  for (const TensorInfo& info : tensors()) {
    const Tensor t = tensor(info);
    const int64_t n = t.shape.size();
    for (int64_t i = first_suspect(t, largest); i < n; ++i) {
      const float x = element(t, i);
      if (std::abs(x) <= largest) continue;
      fail(Code::bad_file, "{}: tensor {}: element {} is {}; expected finite numbers ({} range)",
           path(), info.name, i, x, act == Dtype::f16 ? "float16" : "bf16");
    }
  }
}

std::unique_ptr<TensorSet> open_tensors(const std::string& path, int64_t max_bytes) {
  return std::make_unique<FileTensors>(path, max_bytes);
}

std::unique_ptr<TensorSet> no_tensors(std::string path) {
  return std::make_unique<NoTensors>(std::move(path));
}

}  // namespace lorry
