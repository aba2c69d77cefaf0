#include "base/slots.h"

#include <string>

#include <gtest/gtest.h>

namespace lorry {
namespace {

TEST(Slots, gives_numbers_out_again_with_a_new_object) {
  Slots<std::string> slots;
  const int32_t a = slots.take();
  const int32_t b = slots.take();
  EXPECT_NE(a, b);
  slots[a] = "a";
  slots[b] = "b";
  slots.give_back(a);
  EXPECT_FALSE(slots.is_taken(a));
  EXPECT_EQ(slots.n_taken(), 1);
  EXPECT_EQ(slots.take(), a);
  EXPECT_EQ(slots[a], "");
  EXPECT_EQ(slots[b], "b");
  EXPECT_EQ(slots.end(), 2);
}

TEST(Slots, objects_stay_where_they_are) {
  Slots<int> slots;
  const int* first = &slots[slots.take()];
  for (int i = 0; i < 10000; ++i) slots.take();
  EXPECT_EQ(first, &slots[0]);
}

TEST(SlotsDeathTest, a_number_is_given_back_once) {
  Slots<int> slots;
  slots.give_back(slots.take());
  EXPECT_DEATH(slots.give_back(0), "slot 0 is free already");
}

}  // namespace
}  // namespace lorry
