#include "tasks/train/training_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <exception>
#include <optional>
#include <utility>

#include "engine/autograd.h"
#include "engine/device.h"
#include "engine/error.h"
#include "engine/profiler.h"
#include "ops/binary.h"
#include "ops/trusted_indices.h"

namespace margay {
namespace {

// The tensors of batch i: inputs begin at i * kInputs, outputs at i * kOutputs. Those of the whole step stand behind.
enum Input : size_t { kIds, kRows, kTargets, kWeights, kRng, kInputs };
enum Output : size_t { kNll, kArgmax, kOutputs };
enum StepOutput : size_t { kNorm, kClip };

void check_tokens(std::span<const int32_t> tokens, int64_t vocab_size) {
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocab_size) {
      throw OpError("embedding", "ids", fmt::format("at least 0 and less than {}", vocab_size),
                    fmt::format("{}", token));
    }
  }
}

}  // namespace

std::vector<PackedTensors::Spec> TrainingStep::inputs_of(const StepShape& shape) {
  std::vector<PackedTensors::Spec> specs;
  for (const BatchShape& batch : shape) {
    const Shape rows{batch.rows};
    specs.insert(specs.end(), {{DType::i32, {batch.examples, batch.columns}},
                               {DType::i32, rows},
                               {DType::i32, rows},
                               {DType::f32, rows},
                               {DType::i64, {2}}});
  }
  specs.push_back({DType::f64, {4}});
  return specs;
}

std::vector<PackedTensors::Spec> TrainingStep::outputs_of(const StepShape& shape) {
  std::vector<PackedTensors::Spec> specs;
  for (const BatchShape& batch : shape)
    specs.insert(specs.end(), {{DType::f32, {batch.rows}}, {DType::i32, {batch.rows}}});
  specs.insert(specs.end(), {{DType::f64, {}}, {DType::f64, {}}});
  return specs;
}

TrainingStep::TrainingStep(Device device, bool use_graphs)
    : device_(device), use_graphs_(use_graphs && backend(device).can_capture()) {}

TrainingStep::Entry& TrainingStep::entry_of(std::span<const Batch> batches) {
  StepShape shape;
  for (const Batch& batch : batches)
    shape.push_back({batch.examples, batch.columns, static_cast<int64_t>(batch.rows.size())});
  const auto known = std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.shape == shape; });
  if (known != entries_.end()) {
    entries_.splice(entries_.begin(), entries_, known);
  } else {
    if (entries_.size() == kMostShapes) entries_.pop_back();
    entries_.emplace_front(std::move(shape), device_);
  }
  return entries_.front();
}

// Off the CPU, nothing waits to check an index. There, a row that is padding has class 0 as its target, and no weight.
void TrainingStep::set_inputs(const LanguageModel& model, const StepArguments& arguments, Entry& entry) const {
  const bool trusted = device_.type != DeviceType::cpu;
  for (size_t i = 0; i < arguments.batches.size(); ++i) {
    const Batch& batch = arguments.batches[i];
    const size_t first = i * kInputs;
    std::ranges::copy(batch.inputs, entry.inputs.host<int32_t>(first + kIds).begin());
    std::ranges::copy(batch.rows, entry.inputs.host<int32_t>(first + kRows).begin());
    const std::span target = entry.inputs.host<int32_t>(first + kTargets);
    fill_targets(batch, trusted ? 0 : kIgnoredTarget, target);
    fill_weights(batch, arguments.labels, entry.inputs.host<float>(first + kWeights));
    const std::span place = entry.inputs.host<int64_t>(first + kRng);
    place[0] = arguments.seed;
    place[1] = arguments.place + static_cast<int64_t>(i);
    if (!trusted) continue;
    check_tokens(batch.inputs, model.config().vocab_size);
    check_tokens(target, model.config().vocab_size);
  }
  std::ranges::copy(arguments.hyper, entry.inputs.host<double>(arguments.batches.size() * kInputs).begin());
}

// Also runs while it is recorded: all that changes from step to step lies in `inputs`.
void TrainingStep::run(const LanguageModel& model, Optimizer& optimizer, const Entry& entry) const {
  std::optional<TrustedIndices> trusted;
  if (device_.type != DeviceType::cpu) trusted.emplace();
  optimizer.forget_gradients();  // of a step that failed
  const size_t batches = entry.shape.size();
  Tensor loss;
  for (size_t i = 0; i < batches; ++i) {
    const auto input = [&](Input which) { return entry.inputs[i * kInputs + which]; };
    const LinearCrossEntropy result =
        add_gradients(model, {input(kIds), input(kRows), input(kTargets)}, input(kWeights), input(kRng));
    entry.outputs[i * kOutputs + kNll].copy_from(result.nll.detach());
    entry.outputs[i * kOutputs + kArgmax].copy_from(result.argmax);
    const Tensor part = result.loss.detach().to(DType::f64);
    loss = loss.defined() ? add(loss, part) : part;
  }
  const Tensor& hyper = entry.inputs[batches * kInputs];
  entry.outputs[batches * kOutputs + kNorm].copy_from(optimizer.apply(hyper, loss));
  entry.outputs[batches * kOutputs + kClip].copy_from(hyper.view({}, {}, 3));
}

// The step itself has been handed over, so that nothing that goes wrong here is an error of the training.
void TrainingStep::record(const LanguageModel& model, Optimizer& optimizer, Entry& entry) {
  try {
    DeviceBackend& device = backend(device_);
    if (!pool_) pool_ = std::make_shared<MemoryPool>(device.allocator());
    entry.graph = device.capture(pool_, [&] { run(model, optimizer, entry); });
  } catch (const std::exception& error) {
    optimizer.forget_gradients();
    entry.refused = true;
    refusal_ = error.what();
  }
}

void TrainingStep::start(const LanguageModel& model, Optimizer& optimizer, const StepArguments& arguments) {
  Entry& entry = entry_of(arguments.batches);
  set_inputs(model, arguments, entry);
  entry.inputs.upload();
  const bool watched = Profiler::current() || AnomalyMode::enabled();
  if (entry.graph && !watched) {
    entry.graph->replay();
    for (const Parameter& parameter : model.parameters()) parameter.value.storage()->bump_version();
    ++replayed_;
    return;
  }
  run(model, optimizer, entry);
  if (use_graphs_ && entry.has_run && !entry.graph && !entry.refused && !watched) record(model, optimizer, entry);
  entry.has_run = true;
}

StepResult TrainingStep::finish(std::span<const Batch> batches) {
  PackedTensors& outputs = entries_.front().outputs;
  outputs.download();
  StepResult result;
  for (size_t i = 0; i < batches.size(); ++i) {
    result.sum.add(batches[i], outputs.host<float>(i * kOutputs + kNll), outputs.host<int32_t>(i * kOutputs + kArgmax));
  }
  result.grad_norm = outputs.host<double>(batches.size() * kOutputs + kNorm)[0];
  result.taken = !std::isnan(outputs.host<double>(batches.size() * kOutputs + kClip)[0]);
  return result;
}

}  // namespace margay
