#include "models/step_inputs.h"

#include <cstring>

#include "base/error.h"

namespace lorry {

namespace {

constexpr size_t kAlign = 64;

size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

void StepInputs::begin(size_t elements, size_t n) {
  used_ = 0;
  const size_t bytes = elements * 4 + n * kAlign;
  if (memory_ == nullptr || bytes <= device_.size()) return;
  // Longer block tables than ever before.
  device_ = Buffer(2 * bytes, memory_);
  host_ = Buffer(2 * bytes);
}

std::byte* StepInputs::take(size_t bytes, std::byte*& device) {
  LORRY_CHECK(used_ + aligned(bytes) <= device_.size(), "{} + {} bytes of {}", used_, bytes,
              device_.size());
  std::byte* host = host_.data() + used_;
  device = device_.data() + used_;
  used_ += aligned(bytes);
  return host;
}

std::span<const int32_t> StepInputs::put(std::span<const int32_t> values) {
  if (memory_ == nullptr || values.empty()) return values;
  std::byte* device = nullptr;
  std::byte* host = take(values.size_bytes(), device);
  std::memcpy(host, values.data(), values.size_bytes());
  return {reinterpret_cast<const int32_t*>(device), values.size()};
}

StepInputs::Pair StepInputs::matrix(const Tensor& own) {
  if (memory_ == nullptr) return {own, own};
  std::byte* device = nullptr;
  const int64_t bytes = own.rows() * own.cols() * size_of(own.dtype);
  std::byte* host = take(static_cast<size_t>(bytes), device);
  return {view(host, own.dtype, own.shape), view(device, own.dtype, own.shape)};
}

void StepInputs::send() {
  if (memory_ != nullptr && used_ > 0) memory_->write(device_.data(), host_.data(), used_);
}

}  // namespace lorry
