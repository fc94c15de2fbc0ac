#pragma once
#include <cstdint>

#include "tasks/config.h"

namespace margay {

/// The learning rate of optimiser step `step` = 0 ... total_steps - 1.
///
/// Warm-up first: lr (step + 1) / warmup_steps. Then, with p = (step - warmup_steps) / (total_steps - warmup_steps),
///
///     constant   lr
///     linear     lr (r + (1 - r) (1 - p))
///     cosine     lr (r + (1 - r) (1 + cos(pi p)) / 2)        r = min_lr_ratio
///
/// The fall is spread over all steps of the run, one value a step, also where the run's length is given in epochs. It
/// would reach lr r at step `total_steps`, one after the last.
double learning_rate(const TrainConfig& config, int64_t step, int64_t total_steps);

}  // namespace margay
