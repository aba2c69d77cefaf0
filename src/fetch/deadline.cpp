#include "fetch/deadline.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "base/error.h"

namespace lorry {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

Deadline::Deadline(std::string label, milliseconds total, const std::atomic<bool>* cancelled)
    : label_(std::move(label)),
      total_(total),
      end_(steady_clock::now() + std::min<milliseconds>(total, std::chrono::hours(24 * 365))),
      cancelled_(cancelled) {}

milliseconds Deadline::left() const {
  return std::max(milliseconds(0), duration_cast<milliseconds>(end_ - steady_clock::now()));
}

void Deadline::check() const {
  if (cancelled()) fail(Code::unavailable, "{}: the download was cancelled", label_);
  if (left() == milliseconds(0)) {
    fail(Code::unavailable, "{}: the download took longer than the limit of {} ms", label_,
         total_.count());
  }
}

void Deadline::nap(milliseconds duration) const {
  std::this_thread::sleep_for(std::min(duration, left()));
  check();
}

bool Deadline::sleep(milliseconds duration) const {
  if (duration >= left()) return false;
  // In short naps: a condition variable would need the canceller's cooperation.
  const auto wake = steady_clock::now() + duration;
  for (auto now = steady_clock::now(); now < wake; now = steady_clock::now()) {
    nap(std::min(milliseconds(20), duration_cast<milliseconds>(wake - now) + milliseconds(1)));
  }
  return true;
}

}  // namespace lorry
