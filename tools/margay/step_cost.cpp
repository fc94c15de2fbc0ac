#include "tools/margay/step_cost.h"

#include <algorithm>

#include "engine/device.h"
#include "tasks/train/evaluate.h"

namespace margay::cli {
namespace {

/// A batch of zeros with as many labels as the shape says.
Batch empty_batch(const StepShape& shape, int64_t examples) {
  Batch batch;
  batch.examples = examples;
  batch.columns = shape.columns;
  batch.labels = examples * shape.labels;
  batch.inputs.assign(static_cast<size_t>(examples * shape.columns), 0);
  batch.targets.assign(batch.inputs.size(), kIgnoredTarget);
  for (int64_t example = 0; example < examples; ++example) {
    for (int64_t label = 0; label < shape.labels; ++label) {
      const int64_t row = example * shape.columns + label;
      batch.rows.push_back(static_cast<int32_t>(row));
      batch.targets[row] = 0;
    }
  }
  return batch;
}

/// Peak of tensor memory over forward and backward pass on some examples, gradients included, parameters not.
int64_t peak_of_step(const LanguageModel& model, const StepShape& shape, int64_t examples) {
  CachingAllocator& allocator = backend(model.device()).allocator();
  const int64_t before = allocator.counters().live;
  allocator.reset_peak();
  LossSum sum;
  add_gradients(model, empty_batch(shape, examples), examples * shape.labels, {}, sum);
  for (const Parameter& parameter : model.parameters()) Tensor(parameter.value).zero_grad();
  return allocator.counters().peak - before;
}

/// Features of a head of linear attention.
double features_of(const std::string& mixer, const ModelConfig& config) {
  if (mixer == "gla") return static_cast<double>(config.d_model / config.n_heads) / 2;
  const bool delta = mixer == "delta_net" || mixer == "gated_delta_net" || mixer == "retnet";
  if (delta) return static_cast<double>(config.d_model / config.n_heads);
  const bool taylor = mixer == "based" || config.lincat.feature_map == "taylor2";
  const auto rows = static_cast<double>(mixer == "based" ? config.based.feature_dim : config.d_model / config.n_heads);
  return taylor ? 1 + rows + rows * (rows + 1) / 2 : rows;
}

/// Keys that a query sees, or features through which it sees them, added up over a sequence.
double attended(const std::string& mixer, const ModelConfig& config, double columns) {
  if (mixer == "attention" && config.attention.window > 0) {
    const double most = std::min(columns, static_cast<double>(config.attention.window) + 1);
    return most * columns - most * (most - 1) / 2;
  }
  if (mixer == "lcat") {
    // Half of its own block, and the blocks it retrieves with their landmarks, or all landmarks and blocks before.
    const auto size = static_cast<double>(config.lcat.block_size), before = columns / size / 2;
    const auto most = static_cast<double>(config.lcat.top_k);
    const double retrieved = most > 0 ? std::min(most, before) : before;
    return columns * (std::min(size, columns) / 2 + size * retrieved + before / 2);
  }
  const auto linear = {"lincat", "linear_attention", "based", "gla", "retnet", "delta_net", "gated_delta_net"};
  if (std::find(linear.begin(), linear.end(), mixer) != linear.end()) return columns * features_of(mixer, config);
  return mixer == "attention" || mixer == "cat" ? columns * (columns + 1) / 2 : 0;
}

}  // namespace

double step_flops(const LanguageModel& model, const StepShape& shape) {
  const ModelConfig& config = model.config();
  const auto examples = static_cast<double>(shape.examples), columns = static_cast<double>(shape.columns);
  const auto width = static_cast<double>(config.d_model);
  double forward = 2 * examples * static_cast<double>(shape.labels) * width * static_cast<double>(config.vocab_size);
  for (const Parameter& parameter : model.parameters()) {
    const bool in_block = parameter.name.find("blocks.") == 0 || parameter.name.find(".layers.") != std::string::npos;
    if (in_block && parameter.value.ndim() == 2) {
      forward += 2 * examples * columns * static_cast<double>(parameter.value.numel());
    }
  }
  for (int64_t layer = 0; layer < config.n_layers; ++layer) {
    forward += 4 * examples * width * attended(config.mixer_of(layer), config, columns);  // scores and weighted values
  }
  return 3 * forward;
}

StepMemory step_memory(const LanguageModel& model, const StepShape& shape) {
  const int64_t one = peak_of_step(model, shape, 1), two = peak_of_step(model, shape, 2);
  StepMemory memory;
  for (const Parameter& parameter : model.parameters()) {
    memory.parameters += parameter.value.numel() * static_cast<int64_t>(size_of(parameter.value.dtype()));
  }
  memory.gradients = memory.parameters;
  memory.moments = 2 * memory.parameters;
  memory.activations = std::max<int64_t>(0, one + (two - one) * (shape.examples - 1) - memory.gradients);
  return memory;
}

}  // namespace margay::cli
