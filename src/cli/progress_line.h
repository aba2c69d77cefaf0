// ProgressLine: draws how far long work is (base/progress.h) on standard error: a bar on a
// terminal, elsewhere a line every ten seconds. Work that is soon done shows nothing. No colours.
#pragma once
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "base/progress.h"

namespace CLI {
class App;
}

namespace lorry {

// Bytes a second over the last five to ten seconds.
class RateMeter {
 public:
  // `seconds` of any clock that goes forward.
  void add(int64_t done, double seconds);
  double rate() const { return rate_; }  // 0: not known yet

 private:
  struct Point {
    int64_t done = 0;
    double seconds = 0;
  };
  Point from_, next_;
  bool begun_ = false;
  double rate_ = 0;
};

// "loading weights: 1.2 GB of 4.0 GB (30 %), 512.0 MB/s, 5 s left".
std::string progress_text(const Progress& progress, double rate);
// The same with a bar before it, in at most `columns`.
std::string progress_bar(const Progress& progress, double rate, int columns);

class ProgressLine {
 public:
  enum class Where { nowhere, terminal, lines };
  using Say = std::function<void(const std::string&)>;
  using Clock = std::function<double()>;  // seconds, from anywhere on

  // `say` takes the lines; standard error has them where there is none.
  explicit ProgressLine(Where where, Say say = {}, Clock clock = {});
  ~ProgressLine() { end(); }
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  // Requires: this outlives what calls it.
  ProgressSink sink();
  // Wipes the bar; nothing is drawn from now on. Any thread.
  void end();

 private:
  void update(const Progress& progress);

  const Where where_;
  const Say say_;
  const Clock clock_;
  std::mutex mutex_;
  RateMeter meter_;
  double told_;  // when; at first the start
  bool drawn_ = false;
  bool ended_ = false;
};

// --no-progress.
void add_progress_flag(CLI::App& app, bool& no_progress, const char* group);

// Where progress is to be seen: nowhere when it is not wanted; on a terminal that is one.
ProgressLine::Where progress_place(bool wanted);

}  // namespace lorry
