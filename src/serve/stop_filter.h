// StopFilter: cuts an answer's text before its first stop sequence, and holds back what may be the
// beginning of one until it is known not to be.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace lorry {

class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Returns the text that is certain to belong to the answer now.
  std::string push(std::string_view piece);
  // What was held back; nothing after a stop sequence.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  size_t first_stop() const;  // where one begins in held_; npos: nowhere
  size_t held_from() const;   // where the longest beginning of one starts at the end of held_

  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace lorry
