#pragma once
#include <span>
#include <string>
#include <vector>

#include "tasks/train/metrics.h"
#include "tasks/train/svg.h"

namespace margay {

/// What a run has measured, and what to call it.
struct RunCurves {
  std::string name;
  std::vector<Metrics> metrics;
};

/// The last part of a folder's path.
std::string run_name(const std::string& run_folder);

/// Reads the metrics of a run folder. Throws DataError where there are none.
RunCurves load_curves(const std::string& run_folder);

/// The axis of the loss: `automatic` is logarithmic where the losses span more than a factor of 30.
enum class LossScale { automatic, linear, log };

/// Loss and accuracy of one run, in training and test.
Figure run_figure(const RunCurves& run, const std::string& subtitle, LossScale scale = LossScale::automatic);
/// Training loss and test accuracy of several runs in the same axes.
Figure comparison_figure(std::span<const RunCurves> runs, LossScale scale = LossScale::automatic);

}  // namespace margay
