// What Retry-After says to a crowd.
#include "serve/crowd.h"

#include <queue>
#include <random>

#include <gtest/gtest.h>

namespace lorry {
namespace {

using std::chrono::milliseconds;

constexpr Crowd::Clock::time_point kStart{std::chrono::hours(1)};

// Clients that are refused unless one place became free since, and come back when they were told
// to. Returns refusals a second and what was said last.
struct Outcome {
  double refused;
  int seconds;
};
Outcome run(Crowd& crowd, int clients, int admitted_a_second, int for_seconds) {
  std::mt19937 random(1);
  std::uniform_real_distribution<double> spread(0.75, 1.25);
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> back;  // ms
  for (int i = 0; i < clients; ++i) back.push(i % 50);
  int64_t refused = 0;
  int64_t admitted = 0;
  int seconds = 0;
  for (int64_t now = 0; now < 1000 * for_seconds; ++now) {
    for (; admitted < now * admitted_a_second / 1000; ++admitted) crowd.admitted();
    for (; !back.empty() && back.top() <= now; back.pop()) {
      seconds = crowd.refused(kStart + milliseconds(now));
      refused += now >= 500 * for_seconds ? 1 : 0;
      back.push(now + static_cast<int64_t>(1000 * seconds * spread(random)));
    }
  }
  return {static_cast<double>(refused) / (0.5 * for_seconds), seconds};
}

TEST(Crowd, those_who_are_refused_come_half_as_often_as_others_are_admitted) {
  Crowd crowd;
  const Outcome o = run(crowd, 576, 250, 60);
  EXPECT_GE(o.seconds, 4);
  EXPECT_LE(o.seconds, 7);
  EXPECT_LE(o.refused, 150);
  EXPECT_GE(o.refused, 60);
}

TEST(Crowd, a_few_come_back_after_a_second) {
  Crowd crowd;
  EXPECT_EQ(run(crowd, 20, 250, 20).seconds, 1);
}

TEST(Crowd, nobody_is_sent_away_for_more_than_a_minute) {
  Crowd crowd;
  EXPECT_EQ(run(crowd, 5000, 1, 300).seconds, Crowd::kLongest);
}

TEST(Crowd, it_is_forgotten_when_it_has_gone) {
  Crowd crowd;
  run(crowd, 576, 250, 60);
  EXPECT_EQ(crowd.refused(kStart + std::chrono::seconds(90)), 1);
}

}  // namespace
}  // namespace lorry
