#pragma once
#include <chrono>
#include <string>

#include "tasks/train/trainer.h"
#include "tools/margay/line_display.h"

namespace margay::cli {

/// Tells a person how training goes, and says something for every test. Also passes on that a signal asks for the end.
class Progress final : public TrainObserver {
 public:
  Progress(std::string name, std::string folder, bool quiet);

  void on_start(const Trainer& trainer) override;
  void on_step(const Trainer& trainer, const Metrics& metrics) override;
  bool stop_requested() override;
  /// Ends the line that is being drawn, and says something behind it.
  void finish(const std::string& line) { display_.print_line(line); }
  /// Where training stood when it was last heard of.
  const TrainState& state() const { return state_; }

 private:
  using Clock = std::chrono::steady_clock;

  std::string measures(const Metrics& metrics, int64_t total_steps) const;

  std::string name_, folder_;
  LineDisplay display_;
  TrainState state_;
  Clock::time_point start_;
  int64_t first_step_ = 0;
};

}  // namespace margay::cli
