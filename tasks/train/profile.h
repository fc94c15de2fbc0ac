#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/profiler.h"
#include "tasks/train/device_limits.h"
#include "tasks/train/trainer.h"

namespace margay {

/// Ops of one name and direction, or the part of a phase that lies outside of ops.
struct ProfileRow {
  std::string name;
  bool backward = false;
  bool is_op = true;
  int64_t calls = 0;
  double seconds = 0;
  int64_t bytes = 0, flops = 0;
};

/// What was recorded, and on what.
struct Profile {
  std::vector<ProfileEvent> events;
  std::map<std::string, int64_t> live_at_peak;  ///< bytes by the op that made them
  DeviceLimits limits;
};

/// All rows, the most expensive first. Every moment of the profile is in one of them: an op counts with all the ops
/// that it calls, a phase with what it does between its ops.
std::vector<ProfileRow> profile_rows(const std::vector<ProfileEvent>& events);

/// In the trace event format that Perfetto (https://ui.perfetto.dev) and chrome://tracing open: scopes with their bytes
/// and FLOPs, and the live memory as a counter.
std::string to_chrome_trace(const Profile& profile);

/// Tables for people: time by op, and memory by op at the peak.
std::string to_text(const Profile& profile);

/// Profiles some steps of a training run, once it runs steadily, and passes everything on to another observer.
class ProfiledTraining final : public TrainObserver {
 public:
  /// Of `steps` steps after the first `skipped`.
  ProfiledTraining(TrainObserver& next, int64_t skipped, int64_t steps)
      : next_(next), skipped_(skipped), steps_(steps) {}

  void on_start(const Trainer& trainer) override;
  void on_step(const Trainer& trainer, const Metrics& metrics) override;
  void on_checkpoint(Trainer& trainer) override { next_.on_checkpoint(trainer); }
  bool stop_requested() override { return next_.stop_requested(); }

  bool has_begun() const { return done_ >= skipped_; }
  /// What was recorded until now. Throws ConfigError where training ended before the first step to be profiled.
  Profile finish();

 private:
  void start(Device device);
  void stop();

  TrainObserver& next_;
  int64_t skipped_, steps_, done_ = 0;
  Device device_;
  std::unique_ptr<Profiler> profiler_;
  Profile profile_;
};

}  // namespace margay
