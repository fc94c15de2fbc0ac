#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/file.h"

namespace margay {

/// How well a model does on a split.
struct Evaluation {
  double loss = 0;      ///< mean cross-entropy of all scored positions, in nats
  double accuracy = 0;  ///< share of scored positions predicted right, by example, then averaged over examples
  int64_t examples = 0;
  int64_t tokens = 0;
  double seconds = 0;  ///< it took, making the examples included
};

/// One line of metrics.jsonl: the state after `step` optimiser steps.
struct Metrics {
  int64_t step = 0;
  int64_t epoch = 0;   ///< whole passes over the training examples
  int64_t tokens = 0;  ///< trained on since the start of the run
  double loss = 0;     ///< mean cross-entropy of this step's batch, before the step
  double train_accuracy = 0;
  double lr = 0;
  double grad_norm = 0;          ///< before clipping
  double tokens_per_second = 0;  ///< since the line before, training only
  double seconds = 0;            ///< since the start of the run, evaluation and checkpoints included
  int64_t peak_bytes = 0;        ///< most tensor memory in use at once, on the training device
  /// Test loss and accuracy, where there was an evaluation after this step; null in the file otherwise.
  std::optional<double> test_loss = {}, accuracy = {};
};

/// One JSON object without a line end.
std::string to_json(const Metrics& metrics);
/// Throws DataError that says what is wrong.
Metrics metrics_from_json(std::string_view line);

/// Reads metrics.jsonl. An unfinished last line, as a kill leaves it, does not count. Throws DataError naming the file,
/// and the line where one is wrong.
std::vector<Metrics> read_metrics(const std::string& path);

/// metrics.jsonl of a run that is going on: every line is written by one call, so a kill leaves whole lines.
class MetricsLog {
 public:
  /// Opens the file to append to it, and first cuts lines beyond `last_step` (and an unfinished one): steps that are
  /// about to be taken again. Throws DataError where it cannot be read, ResourceError where it cannot be written.
  MetricsLog(const std::string& path, int64_t last_step);

  /// Throws ResourceError where the disk is full.
  void append(const Metrics& metrics);
  /// Waits until the lines are on the disk.
  void sync();

 private:
  std::string path_;
  Descriptor file_;
};

}  // namespace margay
