// How far long work is: the figures, the bar, the lines, and when they are shown.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cli/process.h"
#include "cli/progress_line.h"

namespace lorry {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

using Where = ProgressLine::Where;

TEST(RateMeter, IsOfTheLastSecondsAndKnowsNoRateAtFirst) {
  RateMeter meter;
  meter.add(1'000'000, 100);  // what was resumed came at no rate
  EXPECT_EQ(meter.rate(), 0);
  meter.add(1'000'200, 102);
  EXPECT_EQ(meter.rate(), 100);
  for (int i = 3; i <= 60; ++i) meter.add(1'000'200 + 1000 * i, 100 + i);
  EXPECT_NEAR(meter.rate(), 1000, 1);
  meter.add(5, 200);  // other work
  EXPECT_EQ(meter.rate(), 0);
}

TEST(ProgressText, HasBytesRateAndTimeLeft) {
  EXPECT_EQ(progress_text({"loading weights", 1'000'000'000, 4'000'000'000}, 500e6),
            "loading weights: 1.0 GB of 4.0 GB (25 %), 500.0 MB/s, 6 s left");
  EXPECT_EQ(progress_text({"x", 5, 10}, 0), "x: 5 B of 10 B (50 %)");
  EXPECT_EQ(progress_text({"x", 5, -1}, 10), "x: 5 B, 10 B/s");
  EXPECT_THAT(progress_text({"x", 0, 1'000'000}, 1000), HasSubstr("16 min 40 s left"));
  EXPECT_THAT(progress_text({"x", 0, 36'000'000}, 1000), HasSubstr("10 h 0 min left"));
  EXPECT_EQ(progress_text({"x", 10, 10}, 1), "x: 10 B of 10 B (100 %), 1 B/s");
}

TEST(ProgressBar, NeverFillsTheLine) {
  const Progress half{"model.safetensors", 50, 100};
  EXPECT_THAT(progress_bar(half, 0, 100), HasSubstr("[############............] model"));
  for (const int columns : {0, 1, 20, 60, 80, 200}) {
    EXPECT_LE(progress_bar(half, 12, columns).size(),
              static_cast<size_t>(std::max(columns - 1, 1)));
  }
}

class Line : public testing::Test {
 protected:
  ProgressLine::Clock clock() {
    return [this] { return now_; };
  }
  ProgressLine::Say say() {
    return [this](const std::string& text) { said_.push_back(text); };
  }

  double now_ = 0;
  std::vector<std::string> said_;
};

TEST_F(Line, IsOneEveryTenSecondsWhereThereIsNoTerminal) {
  ProgressLine line(Where::lines, say(), clock());
  const ProgressSink sink = line.sink();
  for (int i = 0; i <= 250; ++i) {
    now_ = 0.1 * i;
    sink({"loading weights", 1'000'000 * i, 300'000'000});
  }
  EXPECT_THAT(said_, ElementsAre(HasSubstr("of 300.0 MB (33 %), 10.0 MB/s, 20 s left"),
                                 HasSubstr("(66 %), 10.0 MB/s, 10 s left")));
}

TEST_F(Line, SaysNothingOfWhatIsSoonDoneOrNotToBeSeen) {
  ProgressLine line(Where::lines, say(), clock());
  line.sink()({"x", 1, 2});
  now_ = 9;
  line.sink()({"x", 2, 2});
  line.end();
  now_ = 100;
  line.sink()({"x", 2, 2});
  EXPECT_THAT(said_, IsEmpty());
  EXPECT_FALSE(ProgressLine(Where::nowhere).sink());
}

TEST_F(Line, OfATerminalIsWipedAtTheEnd) {
  testing::internal::CaptureStderr();
  {
    ProgressLine line(Where::terminal, {}, clock());
    line.sink()({"x", 1, 4});
    now_ = 1;
    line.sink()({"x", 2, 4});
    now_ = 1.05;  // too soon
    line.sink()({"x", 3, 4});
  }
  const std::string err = testing::internal::GetCapturedStderr();
  EXPECT_THAT(err, HasSubstr("x: 2 B of 4 B (50 %)"));
  EXPECT_THAT(err, Not(HasSubstr("3 B")));
  EXPECT_TRUE(err.ends_with("\r\x1b[K"));
  EXPECT_EQ(err.find('\n'), std::string::npos);
}

TEST(Colours, AreOnATerminalOnlyAndNotWhereTheyAreNotWanted) {
  const std::vector<std::string> serve = {
      "serve",  golden("mixtral-base/model"), "--enable-lora", "--port", "0",
      "--host", "no.such.host.invalid"};
  const auto on_terminal = [&](const std::map<std::string, std::string>& env) {
    return run_lorry_on_terminal(serve, {.env = env}).err;
  };
  EXPECT_THAT(on_terminal({{"TERM", "xterm"}}), HasSubstr("\x1b["));
  EXPECT_THAT(on_terminal({{"TERM", "xterm"}, {"NO_COLOR", "1"}}), Not(HasSubstr("\x1b[")));
  EXPECT_THAT(run_lorry(serve, {.env = {{"TERM", "xterm"}}}).err, Not(HasSubstr("\x1b[")));
}

}  // namespace
}  // namespace lorry
