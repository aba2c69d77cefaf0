#include "engine/stop_texts.h"

#include <algorithm>

namespace lorry {

StopTexts::StopTexts(const Tokenizer& tokenizer, const std::vector<std::string>& stops)
    : tokenizer_(tokenizer), stops_(stops), decoder_(tokenizer) {
  for (const std::string& stop : stops) longest_ = std::max(longest_, stop.size());
}

const std::string* StopTexts::first_in(const std::string& text) const {
  const std::string* first = nullptr;
  size_t first_at = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = text.find(stop);
    if (at < first_at) {
      first_at = at;
      first = &stop;
    }
  }
  return first;
}

std::string StopTexts::push(int32_t id) {
  const std::string piece = decoder_.push(id);
  if (piece.empty()) return push_in_run(id);
  run_.clear();
  tail_ += piece;
  if (const std::string* stop = first_in(tail_)) return *stop;
  if (tail_.size() >= longest_) tail_.erase(0, tail_.size() - longest_ + 1);
  return {};
}

// The decoder holds byte tokens back until their run ends, which may be never (line feeds in a
// row); a stop text in the run ends the answer at once.
std::string StopTexts::push_in_run(int32_t id) {
  if (!tokenizer_.is_byte_run(id)) return {};
  run_ += tokenizer_.bytes(id);
  const std::string seen = tail_ + run_;
  const auto ends = [&](const std::string& stop) { return seen.ends_with(stop); };
  if (std::none_of(stops_.begin(), stops_.end(), ends)) return {};
  // In a run that is not UTF-8 the bytes decode to something else.
  const std::string* stop = first_in(tail_ + decoder_.rest());
  return stop == nullptr ? std::string() : *stop;
}

}  // namespace lorry
