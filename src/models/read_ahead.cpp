#include "models/read_ahead.h"

#include <algorithm>

namespace lorry {

namespace {

// An expert's worth: what is read and not yet packed takes memory that the weights may need.
constexpr size_t kSlices = 3;

}  // namespace

void ReadAhead::begin(const LayerSlices& l) {
  coming_.clear();
  asked_ = 0;
  coming_.insert(coming_.end(), l.qkv.begin(), l.qkv.end());
  coming_.push_back(l.o);
  for (const ExpertSlices& e : l.experts) coming_.insert(coming_.end(), {e.gate, e.up});
  for (const ExpertSlices& e : l.experts) coming_.push_back(e.down);
}

void ReadAhead::at(const Slice& slice) {
  const auto found = std::find_if(coming_.begin(), coming_.end(), [&](const Slice& s) {
    return s.name == slice.name && s.first == slice.first;
  });
  if (found == coming_.end()) return;
  const auto now = static_cast<size_t>(found - coming_.begin());
  asked_ = std::max(asked_, now);
  for (; asked_ < std::min(coming_.size(), now + 1 + kSlices); ++asked_) {
    source_.will_need(coming_[asked_]);
  }
}

}  // namespace lorry
