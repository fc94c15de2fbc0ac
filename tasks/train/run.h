#pragma once
#include <cstdint>
#include <string>

#include "tasks/config.h"
#include "tasks/train/trainer.h"

namespace margay {

struct RunOptions {
  std::string folder;
  bool resume = false;  ///< go on from the newest checkpoint, if there is one
  Device device = {};
};

enum class RunEnd {
  finished,
  stopped,       ///< by the observer; --resume goes on from there
  was_finished,  ///< before: nothing was changed
};

/// Trains in a folder:
///
///     config.toml      all keys
///     metrics.jsonl    a line every few steps (see Metrics), and one for every test
///     checkpoint/      the newest checkpoint (see CheckpointStore); the one before stays in checkpoints/
///     report.svg       the curves, as of the newest checkpoint
///     summary.json     results, once the run is finished
///
/// Throws ConfigError where the folder holds a run already (unless resumed), or another process trains in it; DataError
/// and ResourceError where files cannot be read or written; DivergedError: the last checkpoint is then the last good
/// one.
RunEnd train_in_folder(const Config& config, const RunOptions& options, TrainObserver& observer);

}  // namespace margay
