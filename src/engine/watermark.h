// The soft green list of Kirchenbauer et al., "A Watermark for Large Language Models": which tokens
// a marked text prefers after each of its tokens. The bits are those of torch's CPU generator, so
// that detectors of that paper (scheme "simple_1", or "lefthash") find the mark.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace lorry {

class GreenList {
 public:
  // Owns the working memory for a vocabulary; none of it is touched before it is asked.
  explicit GreenList(int64_t vocab);

  // The int(vocab * gamma) green tokens after token `previous`, in the order of torch.randperm
  // seeded with 15485863 * previous. gamma is in (0, 1). Valid until the next call.
  std::span<const int32_t> after(int32_t previous, double gamma);

 private:
  const int64_t vocab_;
  std::vector<int32_t> order_;
};

}  // namespace lorry
