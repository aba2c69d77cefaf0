// Slots: objects under small numbers, which are given out again once they are free. An object stays
// at its address while its number is taken. One thread.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

#include "base/error.h"

namespace lorry {

template <class T>
class Slots {
 public:
  // The number of a new T{}.
  int32_t take() {
    if (free_.empty()) {
      slots_.emplace_back();
      free_.push_back(end() - 1);
    }
    const int32_t i = free_.back();
    free_.pop_back();
    slots_[static_cast<size_t>(i)].taken = true;
    return i;
  }
  // Requires: taken.
  void give_back(int32_t i) {
    LORRY_CHECK(is_taken(i), "slot {} is free already", i);
    slots_[static_cast<size_t>(i)] = {};
    free_.push_back(i);
  }

  bool is_taken(int32_t i) const { return slots_[static_cast<size_t>(i)].taken; }
  // Of a free number: T{}.
  T& operator[](int32_t i) { return slots_[static_cast<size_t>(i)].object; }
  const T& operator[](int32_t i) const { return slots_[static_cast<size_t>(i)].object; }

  // Every number that is taken is below it.
  int32_t end() const { return static_cast<int32_t>(slots_.size()); }
  int32_t n_taken() const { return end() - static_cast<int32_t>(free_.size()); }

 private:
  struct Slot {
    T object{};
    bool taken = false;
  };
  std::deque<Slot> slots_;
  std::vector<int32_t> free_;
};

}  // namespace lorry
