#include "engine/watermark.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

namespace lorry {

namespace {

// The paper's; what detectors assume.
constexpr uint64_t kHashKey = 15485863;

}  // namespace

GreenList::GreenList(int64_t vocab) : vocab_(vocab) { order_.reserve(static_cast<size_t>(vocab)); }

std::span<const int32_t> GreenList::after(int32_t previous, double gamma) {
  // torch.Generator.manual_seed() gives the Mersenne Twister the low 32 bits.
  std::mt19937 random(static_cast<uint32_t>(kHashKey * static_cast<uint64_t>(previous)));
  order_.resize(static_cast<size_t>(vocab_));
  std::iota(order_.begin(), order_.end(), 0);
  const auto vocab = static_cast<uint32_t>(vocab_);
  const auto n = static_cast<uint32_t>(static_cast<double>(vocab_) * gamma);
  // torch.randperm for less than 2^32 / 20 numbers: from the front, each place takes one of those
  // not taken yet. What is behind n never moves into the first n, so it is left out.
  for (uint32_t i = 0; i < std::min(n, vocab - 1); ++i) {
    std::swap(order_[i], order_[i + static_cast<uint32_t>(random()) % (vocab - i)]);
  }
  return {order_.data(), n};
}

}  // namespace lorry
