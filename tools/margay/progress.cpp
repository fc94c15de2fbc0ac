#include "tools/margay/progress.h"

#include <fmt/format.h>

#include "engine/device.h"
#include "engine/parallel.h"
#include "tools/margay/signals.h"
#include "tools/margay/text.h"

namespace margay::cli {

Progress::Progress(std::string name, std::string folder, bool quiet)
    : name_(std::move(name)), folder_(std::move(folder)), display_(quiet) {}

void Progress::on_start(const Trainer& trainer) {
  state_ = trainer.state();
  const Config& config = trainer.config();
  const int64_t layers = config.model.n_layers;
  display_.print_line(fmt::format("{}: {} layer{} of {}, {} parameters, on {}, threads: {}, into {}", name_, layers,
                                  layers == 1 ? "" : "s", fmt::join(config.model.mixer, ", "),
                                  with_commas(trainer.model().parameter_count()), to_string(trainer.model().device()),
                                  num_threads(), folder_));
  if (state_.step > 0) display_.print_line(fmt::format("going on from step {}", with_commas(state_.step)));
  start_ = Clock::now();
  first_step_ = state_.step;
}

void Progress::on_step(const Trainer& trainer, const Metrics& metrics) {
  state_ = trainer.state();
  if (!display_.due(metrics.accuracy || trainer.finished())) return;
  const int64_t total = trainer.total_steps();
  const double share = static_cast<double>(metrics.step) / static_cast<double>(total);
  const std::string steps = fmt::format("{}/{}  {}", metrics.step, total, measures(metrics, total));
  display_.show(name_, share, fmt::format("{:3.0f} %  {}", 100 * share, steps), "step " + steps);
}

bool Progress::stop_requested() { return stop_signal() != 0; }

std::string Progress::measures(const Metrics& metrics, int64_t total_steps) const {
  const double passed = std::chrono::duration<double>(Clock::now() - start_).count();
  const double left =
      passed / static_cast<double>(state_.step - first_step_) * static_cast<double>(total_steps - state_.step);
  const std::string accuracy = state_.test ? fmt::format("  accuracy {}", percent(state_.test->accuracy)) : "";
  return fmt::format("loss {:.4f}{}  {} tokens/s  ETA {}", metrics.loss, accuracy,
                     short_count(static_cast<double>(state_.tokens) / state_.train_seconds), duration(left));
}

}  // namespace margay::cli
