#include "tasks/study/runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/file.h"
#include "engine/parallel.h"
#include "tasks/study/report.h"
#include "tasks/train/folders.h"

namespace margay {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPollInterval{100};
constexpr const char* kRunColumn = "run";

std::string join(const std::string& folder, std::string_view name) { return (fs::path(folder) / name).string(); }

std::optional<std::string> content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

/// One thread for each op while this lives: the jobs are what runs side by side.
class OneThread {
 public:
  OneThread() : before_(num_threads()) { set_num_threads(1); }
  ~OneThread() { set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

/// The folder of one job: what it has kept.
class JobFolder {
 public:
  JobFolder(const std::string& study_folder, const StudyJob& job)
      : path_((fs::path(study_folder) / "runs" / job.name).string()), job_(job) {}

  const std::string& path() const { return path_; }

  /// Throws ConfigError where it is that of another job.
  void check() const {
    const std::optional<std::string> kept = content_of(join(path_, "settings.txt"));
    if (kept && *kept != job_.settings)
      throw ConfigError(
          fmt::format("{} holds a run with other settings: remove it, or choose another --out", quoted_path(path_)));
  }
  std::optional<Table> result(const std::vector<std::string>& columns) const {
    const std::string path = join(path_, "result.csv");
    const std::optional<std::string> kept = content_of(path);
    if (!kept) return std::nullopt;
    return parse_table(*kept, columns, quoted_path(path));
  }
  void start() const {
    make_folders(path_);
    write_file_atomically(join(path_, "settings.txt"), job_.settings);
  }
  void finish(const Table& rows, bool keep_checkpoints) const {
    write_file_atomically(join(path_, "result.csv"), rows.to_csv());
    if (keep_checkpoints) return;
    fs::remove(fs::path(path_) / "checkpoint");
    fs::remove_all(fs::path(path_) / "checkpoints");
  }

 private:
  std::string path_;
  const StudyJob& job_;
};

/// The jobs of a study and the threads that work on them.
class Crew {
 public:
  Crew(const StudyPlan& plan, const StudyOptions& options) : plan_(plan), options_(options), states_(plan.jobs.size()) {
    for (size_t i = 0; i < plan.jobs.size(); ++i) {
      const JobFolder folder(options.folder, plan.jobs[i]);
      folder.check();
      states_[i].result = folder.result(plan.columns);
      states_[i].phase = states_[i].result ? Phase::finished : Phase::waiting;
      if (!states_[i].result) order_.push_back(i);
    }
    // The long ones first, so that none is left alone at the end.
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return plan.jobs[a].cost > plan.jobs[b].cost; });
    share_at_start_ = share();
    start_ = Clock::now();
  }
  ~Crew() {
    stop();
    for (std::thread& thread : threads_) thread.join();
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  void start() {
    const size_t threads = std::min(order_.size(), static_cast<size_t>(std::max<int64_t>(1, options_.threads)));
    working_ = threads;
    for (size_t i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  }
  void stop() { stop_ = true; }

  /// Waits until something has happened, a poll interval at most. Returns the jobs that were finished since.
  std::vector<size_t> wait() {
    std::unique_lock lock(mutex_);
    event_.wait_for(lock, kPollInterval, [&] { return !news_.empty() || working_ == 0; });
    return std::exchange(news_, {});
  }
  bool working() const {
    const std::lock_guard lock(mutex_);
    return working_ > 0;
  }
  /// Throws what a job threw first.
  void rethrow() const {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
  }
  bool finished() const {
    const std::lock_guard lock(mutex_);
    return std::all_of(states_.begin(), states_.end(), [](const State& s) { return s.phase == Phase::finished; });
  }
  /// The rows of all finished jobs, in the plan's order, each led by its job's name.
  Table rows() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> columns{kRunColumn};
    columns.insert(columns.end(), plan_.columns.begin(), plan_.columns.end());
    Table all(columns);
    for (size_t i = 0; i < states_.size(); ++i) {
      if (!states_[i].result) continue;
      for (size_t row = 0; row < states_[i].result->size(); ++row) {
        std::vector<std::string> cells{plan_.jobs[i].name};
        for (const std::string& column : plan_.columns) cells.push_back(states_[i].result->text(row, column));
        all.add(std::move(cells));
      }
    }
    return all;
  }
  StudyProgress progress() const {
    const std::lock_guard lock(mutex_);
    StudyProgress progress{.jobs = states_.size(), .share = share()};
    for (size_t i = 0; i < states_.size(); ++i) {
      progress.finished += states_[i].phase == Phase::finished;
      if (states_[i].phase == Phase::running) progress.running.push_back(plan_.jobs[i].name);
    }
    progress.seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    const double done = progress.share - share_at_start_;
    progress.seconds_left =
        done > 0 ? progress.seconds * (1 - progress.share) / done : std::numeric_limits<double>::quiet_NaN();
    return progress;
  }

 private:
  enum class Phase : uint8_t { waiting, running, finished };
  struct State {
    Phase phase = Phase::waiting;
    std::atomic<double> share = 0;
    std::optional<Table> result = {};
  };
  class Monitor final : public JobMonitor {
   public:
    Monitor(State& state, const std::atomic<bool>& stop) : state_(state), stop_(stop) {}
    void on_progress(double share) override { state_.share = share; }
    bool stop_requested() override { return stop_; }

   private:
    State& state_;
    const std::atomic<bool>& stop_;
  };

  double share() const {
    double done = 0, all = 0;
    for (size_t i = 0; i < states_.size(); ++i) {
      const double cost = plan_.jobs[i].cost;
      all += cost;
      done += cost * (states_[i].phase == Phase::finished ? 1.0 : states_[i].share.load());
    }
    return all > 0 ? done / all : 1;
  }

  void work() {
    while (const std::optional<size_t> job = take()) {
      try {
        run(*job);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
        stop_ = true;
      }
    }
    const std::lock_guard lock(mutex_);
    --working_;
    event_.notify_all();
  }
  std::optional<size_t> take() {
    const std::lock_guard lock(mutex_);
    if (stop_ || next_ == order_.size()) return std::nullopt;
    const size_t job = order_[next_++];
    states_[job].phase = Phase::running;
    return job;
  }
  void run(size_t index) {
    const JobFolder folder(options_.folder, plan_.jobs[index]);
    folder.start();
    Monitor monitor(states_[index], stop_);
    std::optional<Table> rows = plan_.jobs[index].run(folder.path(), monitor);
    if (rows) folder.finish(*rows, options_.keep_checkpoints);
    const std::lock_guard lock(mutex_);
    states_[index].phase = rows ? Phase::finished : Phase::waiting;
    states_[index].result = std::move(rows);
    if (states_[index].result) news_.push_back(index);
    event_.notify_all();
  }

  const StudyPlan& plan_;
  const StudyOptions& options_;
  std::vector<State> states_;
  std::vector<size_t> order_;  // of the jobs that were not finished before
  size_t next_ = 0;            // into order_
  size_t working_ = 0;         // threads
  std::vector<size_t> news_;
  std::exception_ptr failure_;
  double share_at_start_ = 0;
  Clock::time_point start_;
  std::atomic<bool> stop_ = false;
  mutable std::mutex mutex_;
  std::condition_variable event_;
  std::vector<std::thread> threads_;
};

void check_names(const StudyPlan& plan) {
  std::vector<std::string_view> names;
  for (const StudyJob& job : plan.jobs) names.push_back(job.name);
  std::sort(names.begin(), names.end());
  if (std::adjacent_find(names.begin(), names.end()) != names.end())
    throw std::logic_error("study: names of jobs must differ");
}

}  // namespace

StudyEnd run_study(const Study& study, const StudySettings& settings, const StudyOptions& options,
                   StudyObserver& observer) {
  const StudyPlan plan = study.plan(settings);
  check_names(plan);
  if (plan.check) plan.check();
  make_folders(options.folder);
  const OneThread one_thread;
  Crew crew(plan, options);
  const auto write = [&] { write_study(study, settings, options, plan, crew.rows(), crew.finished()); };
  observer.on_start(crew.progress());
  crew.start();
  for (bool working = true; working;) {
    if (observer.stop_requested()) crew.stop();
    working = crew.working();  // before the last news are taken
    const std::vector<size_t> news = crew.wait();
    if (!news.empty()) write();
    for (const size_t job : news) observer.on_job_finished(plan.jobs[job].name, crew.progress());
    observer.on_progress(crew.progress());
  }
  write();
  crew.rethrow();
  return crew.finished() ? StudyEnd::finished : StudyEnd::stopped;
}

}  // namespace margay
