#pragma once
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "models/language_model.h"
#include "ops/precision.h"
#include "tasks/batch.h"
#include "tasks/config.h"
#include "tasks/task.h"
#include "tasks/train/checkpoint.h"
#include "tasks/train/evaluate.h"
#include "tasks/train/optimizer.h"
#include "tasks/train/training_step.h"

namespace margay {

/// The precision of the matrix products that `train.precision` asks for. Throws ConfigError on a CPU without
/// instructions for it.
Precision training_precision(const TrainConfig& config, Device device, bool cpu_has_bf16 = cpu_has_bf16_products());

/// A model in training: its weights, the optimiser's moments, and a place in the data. It writes nothing by itself and
/// can be driven step by step:
///
///     Trainer trainer(config);
///     while (!trainer.finished()) trainer.step();
///     Evaluation result = trainer.evaluate();
///
/// Same configuration, build and device: same bits, for any number of threads, and wherever it was saved and restored
/// in between.
class Trainer {
 public:
  /// Makes task and model. Throws ConfigError for a configuration that does not fit, DataError for a text that cannot
  /// be read.
  explicit Trainer(const Config& config, Device device = {});

  const Config& config() const { return config_; }
  const LanguageModel& model() const { return model_; }
  const Task& task() const { return *task_; }
  const TrainState& state() const { return state_; }
  const TrainingStep& training_step() const { return training_step_; }

  int64_t total_steps() const { return total_steps_; }
  /// Optimiser steps of an epoch; 0 where examples are fresh for ever.
  int64_t steps_per_epoch() const { return steps_per_epoch_; }
  /// Whether all steps are taken, or the last test reached train.stop_accuracy.
  bool finished() const;

  /// One optimiser step on train.grad_accumulation batches: as one on a batch so many times as large. The last batch of
  /// an epoch may be smaller. Throws DivergedError, with the weights as they were, where loss or gradients are not
  /// finite.
  Metrics step();
  /// Loss and accuracy on the test examples, kept in state(). Throws DivergedError where the loss is not finite.
  Evaluation evaluate();

  /// Writes a checkpoint into a folder. Throws DivergedError where a weight is not finite.
  void save(const std::string& checkpoint);
  /// Goes on from a checkpoint. Throws ConfigError where its configuration differs in more than how long to train and
  /// when to test and save, DataError where it is damaged.
  void restore(const std::string& checkpoint);

 private:
  using Clock = std::chrono::steady_clock;

  /// Where a step is in the data.
  struct Place {
    int64_t step = -1, epoch = 0, next_example = 0;
    bool operator==(const Place&) const = default;
  };
  /// The batches of the step at a place.
  struct StepData {
    Place place, next;  ///< next: of the step after
    std::vector<Batch> batches;
    int64_t labels = 0, tokens = 0;
  };

  Metrics take_step();
  void make_data(const Place& place, StepData& data);
  void make_next_data();
  double seconds_since_start() const;

  Config config_;
  Device device_;
  Precision precision_;
  std::unique_ptr<Task> task_;
  LanguageModel model_;
  Optimizer optimizer_;
  int64_t steps_per_epoch_, total_steps_;
  TrainState state_;
  TrainingStep training_step_;
  StepData data_, next_data_;   // of this step, and of the next where it is made while this one runs
  std::vector<int64_t> order_;  // of the examples of epoch `order_epoch_`, where they are shuffled
  int64_t order_epoch_ = -1;
  Clock::time_point start_;
  double seconds_before_ = 0;  // of the run, in processes before this one
};

/// What happens while a model is trained. Nothing of it changes the results.
class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void on_start(const Trainer&) {}
  /// After each step, with the test's results where there was one.
  virtual void on_step(const Trainer&, const Metrics&) {}
  /// When train.checkpoint_every asks for it, after the last step, and before an early end.
  virtual void on_checkpoint(Trainer&) {}
  /// Asked after each step: true ends the training there.
  virtual bool stop_requested() { return false; }
};

/// Trains to the end, testing as train.eval_every says and after the last step. False if the observer stopped it.
bool train(Trainer& trainer, TrainObserver& observer);

}  // namespace margay
