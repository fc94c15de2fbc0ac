#pragma once
#include <array>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "models/language_model.h"
#include "tasks/batch.h"
#include "tasks/train/evaluate.h"
#include "tasks/train/optimizer.h"
#include "tasks/train/packed_tensors.h"

namespace margay {

/// What a step of training is made from.
struct StepArguments {
  std::span<const Batch> batches;
  int64_t labels = 0;           ///< scored positions of all batches together, at least 1
  int64_t seed = 0, place = 0;  ///< batch i draws its dropout masks from {seed, place + i}
  std::array<double, 4> hyper;  ///< of Optimizer::apply
};

struct StepResult {
  LossSum sum;
  double grad_norm = 0;
  bool taken = false;  ///< false where loss or gradients are not finite: nothing has changed then
};

/// A step of training as work of a device, which needs the host at its begin and end only: forward and backward pass
/// over some batches, and the optimiser. A device that records work (DeviceBackend::capture) gets the step of a shape,
/// i.e. of a number of batches and their sizes, as a graph: it runs op by op when the shape comes first, is recorded
/// when it comes again, and from then on replayed, with the same bits. The graphs of the kMostShapes shapes used last
/// are kept. While a Profiler or AnomalyMode watches the ops, they run one by one.
class TrainingStep {
 public:
  static constexpr size_t kMostShapes = 8;

  TrainingStep(Device device, bool use_graphs);

  /// Hands the step to the device. Throws OpError for tokens outside the vocabulary, and what ops throw: the parameters
  /// are then as they were.
  void start(const LanguageModel& model, Optimizer& optimizer, const StepArguments& arguments);
  /// Waits for the step that was started last, which was on the same batches.
  StepResult finish(std::span<const Batch> batches);

  /// Steps that were replayed.
  int64_t replayed() const { return replayed_; }
  /// Why the last shape that could not be recorded runs op by op; empty if there was none.
  const std::string& refusal() const { return refusal_; }

 private:
  struct BatchShape {
    int64_t examples, columns, rows;
    bool operator==(const BatchShape&) const = default;
  };
  using StepShape = std::vector<BatchShape>;
  static std::vector<PackedTensors::Spec> inputs_of(const StepShape& shape);
  static std::vector<PackedTensors::Spec> outputs_of(const StepShape& shape);

  /// A step of one shape. Recorded work holds addresses, so what it reads and what it finds have their place.
  struct Entry {
    Entry(StepShape wanted, Device device)
        : shape(std::move(wanted)), inputs(inputs_of(shape), device), outputs(outputs_of(shape), device) {}
    StepShape shape;
    PackedTensors inputs, outputs;
    std::unique_ptr<DeviceGraph> graph;
    bool has_run = false, refused = false;
  };

  Entry& entry_of(std::span<const Batch> batches);
  void set_inputs(const LanguageModel& model, const StepArguments& arguments, Entry& entry) const;
  void run(const LanguageModel& model, Optimizer& optimizer, const Entry& entry) const;
  void record(const LanguageModel& model, Optimizer& optimizer, Entry& entry);

  Device device_;
  bool use_graphs_;
  std::shared_ptr<MemoryPool> pool_;  // of all graphs: only one runs at a time, and none needs what another left
  std::list<Entry> entries_;          // used last comes first
  int64_t replayed_ = 0;
  std::string refusal_;
};

}  // namespace margay
