#pragma once
#include <chrono>
#include <optional>
#include <string>

#include "tasks/train/trainer.h"

namespace margay::cli {

/// Tells a person how training goes: on a terminal in one line that is drawn again and again, elsewhere in a plain line
/// for every test and otherwise every ten seconds. Also passes on that a signal asks for the end.
class Progress final : public TrainObserver {
 public:
  Progress(std::string name, std::string folder, bool quiet);
  ~Progress() override;

  void on_start(const Trainer& trainer) override;
  void on_step(const Trainer& trainer, const Metrics& metrics) override;
  bool stop_requested() override;
  /// Ends the line that is being drawn, and says something behind it.
  void finish(const std::string& line);
  /// Where training stood when it was last heard of.
  const TrainState& state() const { return state_; }

 private:
  using Clock = std::chrono::steady_clock;

  bool due(const Trainer& trainer, const Metrics& metrics);
  std::string bar(double share) const;
  std::string live_line(const Trainer& trainer, const Metrics& metrics) const;
  std::string plain_line(const Trainer& trainer, const Metrics& metrics) const;
  std::string measures(const Trainer& trainer, const Metrics& metrics) const;
  double seconds_left(const Trainer& trainer) const;
  void print(const std::string& text);

  std::string name_, folder_;
  bool quiet_, live_, colour_, unicode_;
  TrainState state_;
  bool drawn_ = false;  // a live line is on the screen
  Clock::time_point start_, last_;
  int64_t first_step_ = 0;
};

}  // namespace margay::cli
