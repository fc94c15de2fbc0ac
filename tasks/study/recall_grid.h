#pragma once
#include <string>
#include <vector>

#include "tasks/study/training_job.h"

namespace margay {

/// Recall with several queries over model widths and sequence lengths: what mqar and mqnar share.
struct RecallGrid {
  std::string task;                        ///< name of the task
  std::string title;                       ///< of the figure
  std::vector<std::string> task_settings;  ///< key=value
  int64_t small_steps;                     ///< at most, at the small scale
  /// The first `small_models` alone take part at the small scale: the others are slow on a CPU.
  std::vector<StudyModel> models;
  size_t small_models;
  std::string reading;  ///< for the report: what the task asks
};

StudyPlan recall_plan(const RecallGrid& grid, const StudySettings& settings);

}  // namespace margay
