#include "cli/progress_line.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <utility>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "base/system.h"
#include "cli/environment.h"

namespace lorry {

namespace {

// Seconds.
constexpr double kWindow = 5;     // of the rate
constexpr double kAppears = 0.3;  // the bar
constexpr double kRedraw = 0.1;
constexpr double kEveryLine = 10;
constexpr size_t kBar = 24, kLeastBar = 8;  // columns
constexpr const char* kWipe = "\r\x1b[K";

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string bytes(int64_t n) { return format_bytes(static_cast<size_t>(std::max<int64_t>(n, 0))); }

double fraction(const Progress& p) {
  return p.total > 0
             ? std::clamp(static_cast<double>(p.done) / static_cast<double>(p.total), 0., 1.)
             : 0;
}

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {} s", s / 60, s % 60);
  return fmt::format("{} h {} min", s / 3600, s / 60 % 60);
}

std::string figures(const Progress& p, double rate) {
  std::string text = bytes(p.done);
  if (p.total > 0) {
    text += fmt::format(" of {} ({} %)", bytes(p.total), static_cast<int>(100 * fraction(p)));
  }
  if (rate <= 0) return text;
  text += fmt::format(", {}/s", bytes(static_cast<int64_t>(rate)));
  if (p.total > p.done) {
    text += fmt::format(", {} left", duration(static_cast<double>(p.total - p.done) / rate));
  }
  return text;
}

}  // namespace

void RateMeter::add(int64_t done, double seconds) {
  const Point now{done, seconds};
  if (!begun_ || done < from_.done) {  // begun again
    begun_ = true;
    from_ = next_ = now;
    rate_ = 0;
    return;
  }
  if (seconds - next_.seconds >= kWindow) from_ = std::exchange(next_, now);
  if (seconds > from_.seconds) {
    rate_ = static_cast<double>(done - from_.done) / (seconds - from_.seconds);
  }
}

std::string progress_text(const Progress& p, double rate) {
  return fmt::format("{}: {}", p.what, figures(p, rate));
}

std::string progress_bar(const Progress& p, double rate, int columns) {
  std::string text = progress_text(p, rate);
  // One column stays free: a full line would wrap, and a bar that has wrapped cannot be wiped.
  const auto most = static_cast<size_t>(std::max(columns - 1, 1));
  if (text.size() > most) text.resize(most);
  const size_t room = most - text.size();
  if (p.total <= 0 || room < kLeastBar + 3) return text;
  const size_t bar = std::min(room - 3, kBar);
  const auto full = static_cast<size_t>(fraction(p) * static_cast<double>(bar));
  return fmt::format("[{}{}] {}", std::string(full, '#'), std::string(bar - full, '.'), text);
}

ProgressLine::ProgressLine(Where where, Say say, Clock clock)
    : where_(where),
      say_(std::move(say)),
      clock_(clock ? std::move(clock) : Clock(seconds_now)),
      told_(clock_()) {}

ProgressSink ProgressLine::sink() {
  if (where_ == Where::nowhere) return {};
  return [this](const Progress& p) { update(p); };
}

void ProgressLine::update(const Progress& p) {
  const std::lock_guard lock(mutex_);
  const double now = clock_();
  meter_.add(p.done, now);
  const bool terminal = where_ == Where::terminal;
  const double pause = !terminal ? kEveryLine : drawn_ ? kRedraw : kAppears;
  if (ended_ || now - told_ < pause) return;
  told_ = now;
  if (terminal) {
    drawn_ = true;
    const std::string bar = progress_bar(p, meter_.rate(), terminal_columns());
    std::fputs((kWipe + bar).c_str(), stderr);
  } else if (say_) {
    say_(progress_text(p, meter_.rate()));
  } else {
    std::fputs(("lorry: " + progress_text(p, meter_.rate()) + "\n").c_str(), stderr);
  }
}

void ProgressLine::end() {
  const std::lock_guard lock(mutex_);
  ended_ = true;
  if (std::exchange(drawn_, false)) std::fputs(kWipe, stderr);
}

void add_progress_flag(CLI::App& app, bool& no_progress, const char* group) {
  app.add_flag(
         "--no-progress", no_progress,
         "Say nothing of how far downloads and loading are: no bar on a terminal, and no line "
         "every 10 s elsewhere")
      ->group(group);
}

ProgressLine::Where progress_place(bool wanted) {
  if (!wanted) return ProgressLine::Where::nowhere;
  return stderr_is_terminal() ? ProgressLine::Where::terminal : ProgressLine::Where::lines;
}

}  // namespace lorry
