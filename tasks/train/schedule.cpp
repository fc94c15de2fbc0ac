#include "tasks/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace margay {

double learning_rate(const TrainConfig& config, int64_t step, int64_t total_steps) {
  if (step < config.warmup_steps) {
    return config.lr * static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps);
  }
  if (config.schedule == "constant") return config.lr;
  const auto falling = static_cast<double>(std::max<int64_t>(1, total_steps - config.warmup_steps));
  const double progress = std::min(1.0, static_cast<double>(step - config.warmup_steps) / falling);
  const double share = config.schedule == "linear" ? 1 - progress : 0.5 * (1 + std::cos(std::numbers::pi * progress));
  return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share);
}

}  // namespace margay
