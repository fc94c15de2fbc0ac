#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/study/runner.h"
#include "tasks/study/training_job.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/train/tiny_run.h"

using namespace margay;
using margay::test::TempDir;
namespace fs = std::filesystem;

namespace {

/// Stops after some questions.
struct Monitor final : JobMonitor {
  int64_t patience = 1'000'000;
  double share = 0;
  void on_progress(double now) override {
    CHECK(now >= share);
    share = now;
  }
  bool stop_requested() override { return --patience < 0; }
};

StudyRun tiny_run() {
  StudyRun run{{"Tiny (one)", {}, 1e-2}, test::tiny_config(), {8, 16, 32}};
  run.config.task.train_examples = 0;
  run.config.task.num_kv_pairs = 1;
  return run;
}

/// Rows without how long they took.
std::string timeless(const Table& rows) {
  Table copy(rows.columns());
  for (size_t row = 0; row < rows.size(); ++row) {
    std::vector<std::string> cells;
    for (const std::string& column : rows.columns()) cells.push_back(column == "seconds" ? "" : rows.text(row, column));
    copy.add(std::move(cells));
  }
  return copy.to_csv();
}

/// A row of training_columns() that holds no more than a cell of a figure needs.
void add_row(Table& rows, const std::string& lr, const std::string& seed, const std::string& accuracy,
             const std::string& status = "ok") {
  std::vector<std::string> cells;
  for (const std::string& column : rows.columns()) {
    cells.push_back(column == "model"      ? "CAT"
                    : column == "lr"       ? lr
                    : column == "seed"     ? seed
                    : column == "accuracy" ? accuracy
                    : column == "status"   ? status
                                           : "");
  }
  rows.add(std::move(cells));
}

}  // namespace

TEST_CASE("studies: every run of every scale has a configuration that fits") {
  for (const Study* study : studies()) {
    for (const StudyScale scale : {StudyScale::small, StudyScale::paper}) {
      CAPTURE(study->name);
      const StudyPlan plan = study->plan({.scale = scale, .seeds = 2});
      CHECK(plan.jobs.size() >= 12);
      std::vector<std::string> names;
      for (const StudyJob& job : plan.jobs) {
        names.push_back(job.name);
        CHECK(job.cost > 0);
        CHECK(job.name.find_first_of("/, ") == std::string::npos);
        if (job.settings.find("[model]") == std::string::npos) continue;
        const Config config = parse_config(job.settings, job.name);
        CHECK_NOTHROW(validate(config));
        if (config.task.name != "text") CHECK((config.train.steps > 0) == (scale == StudyScale::small));
      }
      std::sort(names.begin(), names.end());
      CHECK(std::adjacent_find(names.begin(), names.end()) == names.end());

      std::vector<std::string> columns{"run"};
      columns.insert(columns.end(), plan.columns.begin(), plan.columns.end());
      CHECK(std::count(columns.begin(), columns.end(), "seconds") == 1);
      const Table nothing(columns);  // figure and report of a study that has only begun
      CHECK(to_svg(plan.figure(nothing)).find("nan") == std::string::npos);
      CHECK(plan.findings(nothing).find("nan") == std::string::npos);
    }
  }
}

TEST_CASE("studies: a training job tests at its lengths, and goes on where it was stopped") {
  const test::Threads one_thread(1);
  const TempDir dir;
  const StudyJob job = training_job(tiny_run());
  CHECK(job.name == "tiny-one-d16-L16-lr0.01-seed123");
  Monitor patient;
  const std::optional<Table> straight = job.run(dir.file("straight"), patient);
  REQUIRE(straight);
  CHECK(patient.share == doctest::Approx(1));
  REQUIRE(straight->size() == 3);
  CHECK(straight->number(1, "steps") == 20);
  CHECK(straight->number(1, "test_examples") == 30);
  for (size_t row = 0; row < 3; ++row) {
    CHECK(straight->number(row, "test_seq_len") == std::vector<double>{8, 16, 32}[row]);
    CHECK(straight->text(row, "status") == "ok");
    CHECK(std::isfinite(straight->number(row, "accuracy")));
  }
  for (const int64_t patience : {5, 7}) {  // stopped twice, at steps 6 and 14
    Monitor impatient;
    impatient.patience = patience;
    CHECK_FALSE(job.run(dir.file("stopped"), impatient));
  }
  Monitor last;
  last.patience = 8;  // to the end of training, but not of the tests
  CHECK_FALSE(job.run(dir.file("stopped"), last));
  Monitor again;
  const std::optional<Table> resumed = job.run(dir.file("stopped"), again);
  REQUIRE(resumed);
  CHECK(timeless(*resumed) == timeless(*straight));
}

TEST_CASE("studies: a run that diverges is a result; learned positions end where they end") {
  const test::Threads one_thread(1);
  const TempDir dir;
  StudyRun run = tiny_run();
  run.config.train.lr = 1e30;
  Monitor monitor;
  const std::optional<Table> diverged = training_job(run).run(dir.file("diverged"), monitor);
  REQUIRE(diverged);
  REQUIRE(diverged->size() == 3);
  CHECK(diverged->text(0, "status") == "diverged");
  CHECK(std::isnan(diverged->number(0, "accuracy")));
  CHECK(diverged->number(0, "steps") < 20);

  run = tiny_run();
  run.config.model.position = "learned";
  Monitor other;
  const std::optional<Table> rows = training_job(run).run(dir.file("learned"), other);
  REQUIRE(rows);
  CHECK(rows->text(1, "status") == "ok");
  CHECK(rows->text(2, "status") == "too long");
  CHECK(std::isnan(rows->number(2, "accuracy")));
}

TEST_CASE("studies: the best learning rate is that of the best mean over seeds") {
  Table rows(training_columns());
  CHECK(std::isnan(best_accuracy(rows, {{"model", "CAT"}}).accuracy));
  add_row(rows, "0.001", "1", "0.5");
  add_row(rows, "0.001", "2", "0.7");
  add_row(rows, "0.01", "1", "1.0");
  add_row(rows, "0.01", "2", "", "diverged");
  add_row(rows, "0.1", "1", "", "too long");
  const BestAccuracy best = best_accuracy(rows, {{"model", "CAT"}});
  CHECK(best.accuracy == doctest::Approx(0.6));
  CHECK(best.lr == 0.001);
  CHECK(best_accuracy(rows, {{"model", "CAT"}, {"seed", "1"}}).accuracy == 1);
  CHECK(std::isnan(best_accuracy(rows, {{"model", "other"}}).accuracy));
}

TEST_CASE("studies: weights of finished runs go, unless they are wanted") {
  static StudyRun run = tiny_run();
  const test::Threads one_thread(1);
  const Study study{"tiny", "One run", [](const StudySettings&) {
                      return StudyPlan{training_columns(),
                                       {training_job(run)},
                                       [](const Table&) {
                                         return Figure{"", "", {}};
                                       },
                                       [](const Table&) { return std::string(); }};
                    }};
  StudyObserver observer;
  for (const bool keep : {false, true}) {
    const TempDir dir;
    const StudyOptions options{.folder = dir.file("out"), .keep_checkpoints = keep, .command = "tiny", .version = "v"};
    CHECK(run_study(study, {}, options, observer) == StudyEnd::finished);
    const std::string folder = dir.file("out/runs/") + training_job(run).name;
    CHECK(fs::exists(folder + "/checkpoint/model.safetensors") == keep);
    CHECK(fs::exists(folder + "/checkpoints") == keep);
    for (const char* kept : {"/metrics.jsonl", "/config.toml", "/summary.json", "/result.csv", "/report.svg"})
      CHECK(fs::exists(folder + kept));
  }
}

TEST_CASE("studies: lm-length tells how far each model is as good as at its training length") {
  const StudyPlan plan = find_study("lm-length").plan({});
  std::vector<std::string> columns{"run"};
  columns.insert(columns.end(), plan.columns.begin(), plan.columns.end());
  Table rows(columns);
  const auto add = [&](const std::string& model, int64_t length, const std::string& yarn, const std::string& bits,
                       const std::string& status = "ok") {
    std::vector<std::string> cells;
    for (const std::string& column : columns) {
      cells.push_back(column == "model"           ? model
                      : column == "test_seq_len"  ? std::to_string(length)
                      : column == "yarn_scale"    ? yarn
                      : column == "bits_per_byte" ? bits
                      : column == "status"        ? status
                                                  : "");
    }
    rows.add(std::move(cells));
  };
  add("RoPE", 128, "1", "2.1");
  add("RoPE", 128, "1", "1.9");  // another seed
  add("RoPE", 256, "1", "2.5");
  add("RoPE", 256, "2", "2.01");
  add("RoPE", 512, "4", "2.03");
  add("Mamba", 128, "1", "2.2");
  add("Mamba", 256, "1", "2.1");
  add("Mamba", 512, "1", "2.1");
  add("Mamba", 1024, "1", "2.3");
  add("NoPE", 128, "1", "", "diverged");
  const std::string findings = plan.findings(rows);
  CHECK(findings.find("| RoPE | 2.000 | 2.500 | - | - |") != std::string::npos);
  CHECK(findings.find("| RoPE | 2.000 | 2.010 | 2.030 | - |") != std::string::npos);
  CHECK(findings.find("as trained: RoPE (1x), Mamba (4x); with YaRN: RoPE (2x).") != std::string::npos);
  const std::string svg = to_svg(plan.figure(rows));
  CHECK(svg.find("With YaRN") != std::string::npos);
  CHECK(svg.find("nan") == std::string::npos);
}

TEST_CASE("studies: lm-length says what to do where its text is missing, before it writes anything") {
  const TempDir dir;
  const Study& study = find_study("lm-length");
  StudyObserver observer;
  const StudyOptions options{.folder = dir.file("out"), .command = "", .version = ""};
  const auto run = [&](const std::string& text) { run_study(study, {.text = text}, options, observer); };
  CHECK_THROWS_WITH_AS(run(dir.file("none.txt")), doctest::Contains("tools/quickstart.sh"), DataError);
  const std::string text = dir.write("short.txt", std::string(10'000, 'a'));
  CHECK_THROWS_WITH_AS(run(text), doctest::Contains("task.seq_len = 512"), DataError);
  CHECK_FALSE(fs::exists(dir.file("out")));
}
