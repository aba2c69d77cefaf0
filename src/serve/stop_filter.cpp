#include "serve/stop_filter.h"

#include <algorithm>
#include <utility>

namespace lorry {

size_t StopFilter::first_stop() const {
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, held_.find(stop));
  return first;
}

size_t StopFilter::held_from() const {
  size_t from = held_.size();
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > held_.size() - from; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) {
        from = held_.size() - n;
        break;
      }
    }
  }
  return from;
}

std::string StopFilter::push(std::string_view piece) {
  if (stopped_) return {};
  held_ += piece;
  if (const size_t at = first_stop(); at != std::string::npos) {
    stopped_ = true;
    return std::exchange(held_, {}).substr(0, at);
  }
  const size_t from = held_from();
  std::string out = held_.substr(0, from);
  held_.erase(0, from);
  return out;
}

std::string StopFilter::finish() { return std::exchange(held_, {}); }

}  // namespace lorry
