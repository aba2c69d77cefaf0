// The best token of a vocabulary that ranks share is that of the whole row.
#include "models/best_of_part.h"

#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "ops/scores.h"

namespace lorry {
namespace {

// Of parts that end at `ends`, each asked by itself.
int32_t best_by_parts(const std::vector<float>& row, const std::vector<size_t>& ends) {
  std::vector<BestOfPart> parts;
  size_t first = 0;
  for (const size_t end : ends) {
    const std::span<const float> part(row.data() + first, end - first);
    parts.push_back(best_of_part(part, arg_max(part), static_cast<int64_t>(first)));
    first = end;
  }
  return best_of(parts);
}

TEST(BestOfPart, is_that_of_the_whole_row) {
  std::mt19937 random(1);
  const std::vector<std::vector<size_t>> splits{{50}, {1, 50}, {20, 20, 50}, {7, 8, 40, 50}};
  for (int i = 0; i < 2000; ++i) {
    std::vector<float> row(50);
    for (float& x : row) x = static_cast<float>(static_cast<int>(random() % 9) - 4);
    if (i % 5 == 1) row[random() % 50] = NAN;
    if (i % 5 == 2) row[random() % 50] = INFINITY;
    if (i % 5 >= 3) std::fill(row.begin(), row.begin() + 10 * (i % 6), -INFINITY);
    for (const auto& ends : splits) {
      EXPECT_EQ(best_by_parts(row, ends), arg_max(row)) << i << ", " << ends.size() << " parts";
    }
  }
}

}  // namespace
}  // namespace lorry
