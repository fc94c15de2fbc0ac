#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/study/table.h"
#include "tasks/train/svg.h"

namespace margay {

/// How much a study does: what shows the paper's ordering on two cores in minutes, or the paper's own settings.
enum class StudyScale : uint8_t { small, paper };

std::string_view to_string(StudyScale scale);
/// Throws ConfigError with the nearest name.
StudyScale parse_study_scale(std::string_view name);

/// What fixes the results of a study.
struct StudySettings {
  StudyScale scale = StudyScale::small;
  int64_t seed = 123;     ///< of weights and examples
  int64_t seeds = 1;      ///< repetitions, with seed, seed + 1 ...
  std::string text = {};  ///< what task.path is for studies of language; empty = their own choice
};

/// What a job asks and tells while it works. Called from the job's own thread.
class JobMonitor {
 public:
  virtual ~JobMonitor() = default;
  /// The share that is done.
  virtual void on_progress(double share) = 0;
  virtual bool stop_requested() = 0;
};

/// A part of a study that runs on one thread, by itself.
struct StudyJob {
  std::string name;      ///< of its folder; unique in the study
  std::string settings;  ///< everything that its results depend on: rows from other settings are not taken for its own
  double cost = 1;       ///< of the whole job, roughly, in units that all jobs of the study share
  /// Works in a folder, going on where it stopped before. Returns its rows of the study's table; none where it was
  /// stopped.
  std::function<std::optional<Table>(const std::string& folder, JobMonitor& monitor)> run;
};

/// A study in the making: its jobs, and what becomes of their rows. Both functions take whatever rows there are.
struct StudyPlan {
  std::vector<std::string> columns;
  std::vector<StudyJob> jobs;
  std::function<Figure(const Table&)> figure;
  /// Markdown: what was run, and what came out.
  std::function<std::string(const Table&)> findings;
  /// Throws where something that the jobs need is not there. Called before anything is written; may be empty.
  std::function<void()> check = {};
};

/// A figure of the paper that one command makes again.
struct Study {
  std::string_view name, summary;
  StudyPlan (*plan)(const StudySettings& settings);
};

/// All studies.
std::span<const Study* const> studies();
/// Throws ConfigError with the nearest name.
const Study& find_study(std::string_view name);

}  // namespace margay
