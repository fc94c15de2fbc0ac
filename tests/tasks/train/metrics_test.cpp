#include "tasks/train/metrics.h"

#include <doctest/doctest.h>

#include <string>

#include "engine/error.h"
#include "tests/support/temp_dir.h"

using namespace margay;

namespace {

Metrics at_step(int64_t step) {
  Metrics metrics;
  metrics.step = step;
  metrics.loss = 1.0 / static_cast<double>(step);
  return metrics;
}

void write_steps(const std::string& path, int64_t steps) {
  MetricsLog log(path, 0);
  for (int64_t step = 1; step <= steps; ++step) log.append(at_step(step));
}

}  // namespace

TEST_CASE("metrics: a line gives every value back to the bit") {
  Metrics metrics{.step = 12,
                  .epoch = 3,
                  .tokens = 1 << 30,
                  .loss = 0.1,
                  .train_accuracy = 1.0 / 3,
                  .lr = 1e-17,
                  .grad_norm = 123.456,
                  .tokens_per_second = 1e6 / 7,
                  .seconds = 0.3,
                  .peak_bytes = 99};
  for (const bool tested : {false, true}) {
    if (tested) {
      metrics.test_loss = 0.7;
      metrics.accuracy = 0.999;
    }
    const Metrics read = metrics_from_json(to_json(metrics));
    CHECK(to_json(read) == to_json(metrics));
    CHECK(read.loss == metrics.loss);
    CHECK(read.test_loss == metrics.test_loss);
    CHECK(read.accuracy == metrics.accuracy);
    CHECK(read.peak_bytes == metrics.peak_bytes);
  }
  CHECK(to_json(at_step(1)).find("\"accuracy\":null") != std::string::npos);
  CHECK(to_json(at_step(1)).find('\n') == std::string::npos);
}

TEST_CASE("metrics: lines that are none") {
  for (const char* line : {"", "3", "[]", "{}", "{\"step\":1}", "{\"step\":"}) {
    CAPTURE(line);
    CHECK_THROWS_AS(metrics_from_json(line), DataError);
  }
  std::string text = to_json(at_step(1));
  text.replace(text.find("null"), 4, "true");
  CHECK_THROWS_AS(metrics_from_json(text), DataError);
}

TEST_CASE("metrics: a log that goes on cuts the steps that are taken again") {
  const test::TempDir dir;
  const std::string path = dir.file("metrics.jsonl");
  write_steps(path, 5);
  {
    MetricsLog log(path, 3);
    log.append(at_step(4));
    log.sync();
  }
  const std::vector<Metrics> read = read_metrics(path);
  REQUIRE(read.size() == 4);
  for (size_t i = 0; i < read.size(); ++i) CHECK(read[i].step == static_cast<int64_t>(i) + 1);
}

TEST_CASE("metrics: a log that a kill left unfinished") {
  const test::TempDir dir;
  const std::string path = dir.write("metrics.jsonl", to_json(at_step(1)) + '\n' + to_json(at_step(2)).substr(0, 20));
  CHECK(read_metrics(path).size() == 1);
  MetricsLog(path, 2).append(at_step(2));
  REQUIRE(read_metrics(path).size() == 2);
  CHECK(read_metrics(path)[1].step == 2);
}

TEST_CASE("metrics: errors name the file and the line") {
  const test::TempDir dir;
  CHECK_THROWS_AS(read_metrics(dir.file("none")), DataError);
  const std::string path = dir.write("metrics.jsonl", to_json(at_step(1)) + "\nnonsense\n");
  CHECK_THROWS_WITH_AS(read_metrics(path), doctest::Contains("metrics.jsonl\":2: must be a JSON object"), DataError);
  CHECK_THROWS_AS(MetricsLog(path, 2), DataError);
  CHECK_THROWS_AS(MetricsLog(dir.file("none/metrics.jsonl"), 0), DataError);
  MetricsLog full("/dev/full", 0);
  CHECK_THROWS_AS(full.append(at_step(1)), ResourceError);
}
