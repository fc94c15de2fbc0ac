#include "tasks/train/schedule.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numbers>

using namespace margay;

namespace {

TrainConfig config_of(const char* schedule, int64_t warmup_steps, double min_lr_ratio) {
  TrainConfig config;
  config.lr = 0.1;
  config.schedule = schedule;
  config.warmup_steps = warmup_steps;
  config.min_lr_ratio = min_lr_ratio;
  return config;
}

}  // namespace

TEST_CASE("schedule: cosine over all steps") {
  const TrainConfig config = config_of("cosine", 0, 0);
  CHECK(learning_rate(config, 0, 100) == doctest::Approx(0.1));
  CHECK(learning_rate(config, 50, 100) == doctest::Approx(0.05));
  CHECK(learning_rate(config, 99, 100) == doctest::Approx(0.05 * (1 + std::cos(0.99 * std::numbers::pi))));
  for (int64_t step = 1; step < 100; ++step) {
    CHECK(learning_rate(config, step, 100) < learning_rate(config, step - 1, 100));
  }
}

TEST_CASE("schedule: linear falls to the smallest rate") {
  const TrainConfig config = config_of("linear", 0, 0.1);
  CHECK(learning_rate(config, 0, 10) == doctest::Approx(0.1));
  CHECK(learning_rate(config, 5, 10) == doctest::Approx(0.1 * (0.1 + 0.9 * 0.5)));
  CHECK(learning_rate(config, 10, 10) == doctest::Approx(0.01));
  CHECK(learning_rate(config, 1000, 10) == doctest::Approx(0.01));
}

TEST_CASE("schedule: constant") {
  const TrainConfig config = config_of("constant", 0, 0);
  for (const int64_t step : {0, 7, 1000}) CHECK(learning_rate(config, step, 10) == 0.1);
}

TEST_CASE("schedule: warm-up rises to the full rate, and the fall starts there") {
  for (const char* schedule : {"cosine", "linear", "constant"}) {
    CAPTURE(schedule);
    const TrainConfig config = config_of(schedule, 10, 0);
    for (int64_t step = 0; step < 10; ++step) {
      CHECK(learning_rate(config, step, 100) == doctest::Approx(0.01 * static_cast<double>(step + 1)));
    }
    CHECK(learning_rate(config, 10, 100) == doctest::Approx(0.1));
  }
  CHECK(learning_rate(config_of("linear", 10, 0), 55, 100) == doctest::Approx(0.05));
}

TEST_CASE("schedule: a warm-up longer than the run") {
  const TrainConfig config = config_of("cosine", 100, 0);
  CHECK(learning_rate(config, 9, 10) == doctest::Approx(0.01));
  CHECK(std::isfinite(learning_rate(config, 100, 10)));
}
