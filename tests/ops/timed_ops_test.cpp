// Measuring changes nothing, and every kind of operation has a name.
#include "ops/timed_ops.h"

#include <array>
#include <set>

#include <gtest/gtest.h>

#include "base/thread_pool.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/support.h"

namespace lorry::test {
namespace {

TEST(TimedOps, measures_what_it_forwards) {
  ThreadPool pool(2);
  OpTimes times;
  const auto plain = make_cpu_ops(Dtype::f32, pool);
  const auto timed = make_timed_ops(make_cpu_ops(Dtype::f32, pool), times);
  const Matrix x = random_matrix(Dtype::f32, 5, 37, 1);
  const Matrix a = random_matrix(Dtype::f32, 5, 37, 2);
  const Matrix b = random_matrix(Dtype::f32, 5, 37, 2);

  plain->add(a(), std::array{x()});
  timed->add(b(), std::array{x()});
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t c = 0; c < 37; ++c) ASSERT_EQ(get(a(), r, c), get(b(), r, c));
  }
  EXPECT_GT(times.ns[OpTimes::add].load(), 0);
  EXPECT_EQ(times.total(), times.ns[OpTimes::add].load());

  timed->clamp(b(), 0.5F);
  EXPECT_GT(times.ns[OpTimes::rope].load(), 0);
  EXPECT_EQ(times.total(), times.ns[OpTimes::add].load() + times.ns[OpTimes::rope].load());
}

TEST(TimedOps, names_are_distinct) {
  std::set<std::string_view> names;
  for (size_t i = 0; i < OpTimes::count; ++i)
    names.insert(OpTimes::name(static_cast<OpTimes::Op>(i)));
  EXPECT_EQ(names.size(), static_cast<size_t>(OpTimes::count));
}

}  // namespace
}  // namespace lorry::test
