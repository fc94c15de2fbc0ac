#include "tasks/study/runner.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>

#include "engine/error.h"
#include "engine/parallel.h"
#include "tests/support/temp_dir.h"

using namespace margay;
using margay::test::TempDir;
namespace fs = std::filesystem;

namespace {

constexpr int64_t kJobs = 6;
std::atomic<int64_t> jobs_run;        // to their end
std::atomic<int64_t> failing_job;     // throws; -1 = none
std::atomic<int64_t> lingering_from;  // jobs from here on work until they are told to stop
std::atomic<int> threads_inside;

std::optional<Table> work(int64_t index, int64_t seed, JobMonitor& monitor) {
  threads_inside = num_threads();
  monitor.on_progress(0.5);
  if (index == failing_job) throw ConfigError("this job fails");
  while (index >= lingering_from) {
    if (monitor.stop_requested()) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  Table rows({"index", "seconds"});
  rows.add({std::to_string(index), "0.25"});
  rows.add({std::to_string(index + 100 * seed), "0.25"});
  ++jobs_run;
  return rows;
}

StudyPlan plan(const StudySettings& settings) {
  StudyPlan plan;
  plan.columns = {"index", "seconds"};
  for (int64_t i = 0; i < kJobs; ++i) {
    plan.jobs.push_back(
        {.name = "job" + std::to_string(i),
         .settings = "seed = " + std::to_string(settings.seed),
         .cost = static_cast<double>(1 + i),
         .run = [i, seed = settings.seed](const std::string&, JobMonitor& monitor) { return work(i, seed, monitor); }});
  }
  plan.figure = [](const Table& rows) {
    Series series{.name = "all"};
    for (size_t row = 0; row < rows.size(); ++row) {
      series.x.push_back(static_cast<double>(row));
      series.y.push_back(rows.number(row, "index"));
    }
    return Figure{"made up", "", {{"panel", {}, {}, {series}}}};
  };
  plan.findings = [](const Table& rows) { return "rows: " + std::to_string(rows.size()) + "\n"; };
  return plan;
}
constexpr Study kStudy{"made-up", "A study of nothing", plan};

/// Remembers what it was told, and asks for the end after some jobs.
struct Observer final : StudyObserver {
  size_t stop_after = 1000;
  StudyProgress first, last;
  std::vector<std::string> finished;

  void on_start(const StudyProgress& progress) override { first = last = progress; }
  void on_progress(const StudyProgress& progress) override {
    CHECK(progress.share >= last.share);
    if (progress.share > first.share) CHECK(std::isfinite(progress.seconds_left));
    last = progress;
  }
  void on_job_finished(const std::string& name, const StudyProgress&) override { finished.push_back(name); }
  bool stop_requested() override { return finished.size() >= stop_after; }
};

void reset() {
  jobs_run = 0;
  failing_job = -1;
  lingering_from = kJobs;
}

StudyEnd run(const TempDir& dir, Observer& observer, int64_t threads = 1, int64_t seed = 1) {
  const StudyOptions options{.folder = dir.file("out"), .threads = threads, .command = "made up", .version = "v"};
  return run_study(kStudy, {.seed = seed}, options, observer);
}

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("study: all jobs run once, and their rows stand in the plan's order for any number of threads") {
  std::string csv;
  for (const int64_t threads : {1, 3, 20}) {
    reset();
    const TempDir dir;
    Observer observer;
    const int before = num_threads();
    CHECK(run(dir, observer, threads) == StudyEnd::finished);
    CHECK(num_threads() == before);
    CHECK(threads_inside == 1);
    CHECK(jobs_run == kJobs);
    CHECK(observer.finished.size() == kJobs);
    CHECK(observer.first.finished == 0);
    CHECK(observer.last.share == doctest::Approx(1));
    CHECK(observer.last.finished == kJobs);
    CHECK(observer.last.seconds_left == doctest::Approx(0));
    const std::string got = content(dir.file("out/results.csv"));
    CHECK(got.starts_with("run,index,seconds\njob0,0,0.25\njob0,100,0.25\njob1,1,0.25\n"));
    if (!csv.empty()) CHECK(got == csv);
    csv = got;
    const std::string report = content(dir.file("out/report.md"));
    for (const char* text : {"# made-up", "A study of nothing", "](made-up.svg)", "rows: 12", "`made up`", "seed 1"})
      CHECK(report.find(text) != std::string::npos);
    CHECK(report.find("Not finished") == std::string::npos);
    CHECK(content(dir.file("out/made-up.svg")).starts_with("<svg"));
  }
}

TEST_CASE("study: what is done is kept, and what was stopped goes on") {
  reset();
  lingering_from = 3;
  const TempDir dir;
  Observer observer;
  observer.stop_after = 0;
  CHECK(run(dir, observer, 2) == StudyEnd::stopped);
  CHECK(content(dir.file("out/report.md")).find("Not finished") != std::string::npos);

  lingering_from = kJobs;  // one job at a time, the largest first; the next one may begin before the stop is heard
  Observer some;
  some.stop_after = 2;
  run(dir, some);
  const int64_t done = jobs_run;
  CHECK(done >= 2);

  Observer rest;
  CHECK(run(dir, rest) == StudyEnd::finished);
  CHECK(jobs_run == kJobs);
  CHECK(rest.first.finished == static_cast<size_t>(done));
  CHECK(rest.first.share > 0);
  CHECK(content(dir.file("out/report.md")).find("Not finished") == std::string::npos);

  const std::string csv = content(dir.file("out/results.csv"));
  Observer nothing;
  CHECK(run(dir, nothing) == StudyEnd::finished);
  CHECK(jobs_run == kJobs);
  CHECK(nothing.finished.empty());
  CHECK(content(dir.file("out/results.csv")) == csv);
}

TEST_CASE("study: an error of a job ends the study, and keeps what is done") {
  reset();
  failing_job = 2;
  const TempDir dir;
  Observer observer;
  CHECK_THROWS_WITH_AS(run(dir, observer), "this job fails", ConfigError);
  CHECK(jobs_run == 3);  // 5, 4 and 3
  CHECK(content(dir.file("out/results.csv")).find("job3,3") != std::string::npos);
  failing_job = -1;
  Observer again;
  CHECK(run(dir, again) == StudyEnd::finished);
  CHECK(jobs_run == kJobs);
}

TEST_CASE("study: a folder of other settings, or with damaged results, is refused") {
  reset();
  const TempDir dir;
  Observer observer;
  run(dir, observer);
  CHECK_THROWS_WITH_AS(run(dir, observer, 1, 2), doctest::Contains("other settings"), ConfigError);
  std::ofstream(dir.file("out/runs/job1/result.csv")) << "index,seconds\n1\n";
  CHECK_THROWS_WITH_AS(run(dir, observer), doctest::Contains("job1/result.csv"), DataError);
}

TEST_CASE("study: names") {
  CHECK(find_study("mqar").name == "mqar");
  CHECK_THROWS_WITH_AS(find_study("mqra"), "unknown study \"mqra\"; the nearest is \"mqar\"", ConfigError);
  CHECK(parse_study_scale("paper") == StudyScale::paper);
  CHECK(to_string(StudyScale::small) == "small");
  CHECK_THROWS_WITH_AS(parse_study_scale("papr"), doctest::Contains("the nearest is \"paper\""), ConfigError);
}
