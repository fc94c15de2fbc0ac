#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "tasks/study/study.h"

namespace margay {

struct StudyOptions {
  std::string folder;
  int64_t threads = 1;            ///< jobs at once, each on one thread
  bool keep_checkpoints = false;  ///< weights of finished runs stay in their folders
  std::string command, version;   ///< for the report
};

/// How far a study is.
struct StudyProgress {
  size_t jobs = 0, finished = 0;
  double share = 0;         ///< of the work, by the costs of its jobs
  double seconds = 0;       ///< since the study was started or resumed
  double seconds_left = 0;  ///< at the pace so far; NaN as long as there is none
  std::vector<std::string> running = {};
};

/// Told on the thread that called run_study.
class StudyObserver {
 public:
  virtual ~StudyObserver() = default;
  virtual void on_start(const StudyProgress&) {}
  /// Several times a second.
  virtual void on_progress(const StudyProgress&) {}
  virtual void on_job_finished(const std::string& /*name*/, const StudyProgress&) {}
  /// Asked several times a second: true lets every job save and stop.
  virtual bool stop_requested() { return false; }
};

enum class StudyEnd { finished, stopped };

/// Runs a study in a folder, or goes on with it:
///
///     runs/JOB/     what each job keeps: result.csv once it is done, settings.txt, and for training a run's own files
///     results.csv   the rows of all jobs
///     NAME.svg      the figure
///     report.md     what was run and what came out
///
/// The last three are written again whenever a job is done, with what there is. Results do not depend on `threads`.
/// Throws ConfigError where the folder holds a job of the same name with other settings, and what jobs throw; then the
/// other jobs save and stop first. A training run that diverges is a result.
StudyEnd run_study(const Study& study, const StudySettings& settings, const StudyOptions& options,
                   StudyObserver& observer);

}  // namespace margay
