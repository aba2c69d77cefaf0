#include "models/read_ahead.h"

#include <algorithm>

namespace lorry {

namespace {

// An expert's worth: what is read and not yet packed takes memory that the weights may need.
constexpr size_t kTensors = 3;

}  // namespace

void ReadAhead::begin(const LayerSlices& l) {
  coming_.clear();
  asked_ = 0;
  const auto add = [&](const Slice& s) {
    if (coming_.empty() || coming_.back() != s.name) coming_.push_back(s.name);
  };
  for (const Slice& s : l.qkv) add(s);
  add(l.o);
  for (const ExpertSlices& e : l.experts) {
    add(e.gate);
    add(e.up);
  }
  for (const ExpertSlices& e : l.experts) add(e.down);
}

void ReadAhead::at(const std::string& name) {
  const auto found = std::find(coming_.begin(), coming_.end(), name);
  if (found == coming_.end()) return;
  const auto next = static_cast<size_t>(found - coming_.begin()) + 1;
  asked_ = std::max(asked_, next);
  for (; asked_ < std::min(coming_.size(), next + kTensors); ++asked_) {
    source_.will_need(coming_[asked_]);
  }
}

}  // namespace lorry
