// StepCounter: how often steps were of which size, by powers of two. One thread adds, any reads.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace lorry {

// counts[i]: values of at most 2^i and more than 2^(i - 1); the last: all above as well.
struct StepHistogram {
  static constexpr size_t kSize = 20;
  std::array<int64_t, kSize> counts{};
  int64_t sum = 0;
};

class StepCounter {
 public:
  void add(int64_t value) {
    const auto width = value <= 1
                           ? size_t{0}
                           : static_cast<size_t>(std::bit_width(static_cast<uint64_t>(value - 1)));
    ++counts_[std::min(width, StepHistogram::kSize - 1)];
    sum_ += value;
  }
  StepHistogram read() const {
    StepHistogram out;
    for (size_t i = 0; i < out.counts.size(); ++i) out.counts[i] = counts_[i];
    out.sum = sum_;
    return out;
  }

 private:
  std::array<std::atomic<int64_t>, StepHistogram::kSize> counts_{};
  std::atomic<int64_t> sum_{0};
};

}  // namespace lorry
