#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tasks/config.h"
#include "tasks/study/study.h"
#include "tasks/train/checkpoint.h"

namespace margay {

/// A model of a study: what a legend calls it, and how its configuration differs.
struct StudyModel {
  std::string name;
  std::vector<std::string> settings;  ///< key=value
  double lr;                          ///< that it learns quickly with, tried out beforehand
};

/// A training run that has come to its end.
struct TrainedRun {
  TrainState state;  ///< after its last whole step
  int64_t parameters = 0;
  bool diverged = false;
};

/// Trains in a folder, going on where it stopped before, as `share` of a job's work. Nothing where the monitor stopped
/// it.
std::optional<TrainedRun> train_to_end(const Config& config, const std::string& folder, JobMonitor& monitor,
                                       double share);

/// "CAT + RoPE" as part of a folder's name: "cat-rope".
std::string job_name(std::string_view text);

/// One training run of a study.
struct StudyRun {
  StudyModel model;
  Config config;                            ///< the model's settings applied
  std::vector<int64_t> test_seq_lens = {};  ///< tested at the end; the training length alone if empty
};

/// The columns of training runs: a row for each test length. `accuracy` and `test_loss` are empty where there are none,
/// and `status` says why: "diverged", or "too long" for what learned positions end before.
std::vector<std::string> training_columns();

/// Trains in the job's folder and tests. Its name comes from the model's name, width, length, learning rate and seed.
StudyJob training_job(const StudyRun& run);

/// The learning rates that are tried: the model's own at the small scale, else the four of the paper's benchmark,
/// 1e-4 ... 1e-2.
std::vector<double> learning_rates(const StudyModel& model, StudyScale scale);

/// A configuration with a model's settings.
Config with_settings(Config config, const std::vector<std::string>& settings);

/// What rows have in some columns, as {"d_model", "64"}.
using Match = std::vector<std::pair<std::string_view, std::string>>;

/// The accuracy in a cell of a figure.
struct BestAccuracy {
  double accuracy;  ///< NaN where there is none
  double lr;
};
/// The best learning rate's accuracy, averaged over seeds, among the rows that match; a diverged run counts as 0.
BestAccuracy best_accuracy(const Table& rows, const Match& match);

/// The names of the runs that diverged and how a figure takes them ("counted as 0"), for a report; empty where none
/// did.
std::string diverged_runs(const Table& rows, std::string_view how);

}  // namespace margay
