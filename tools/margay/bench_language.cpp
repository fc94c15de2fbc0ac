#include <fmt/format.h>

#include <memory>
#include <numeric>

#include "engine/autograd.h"
#include "engine/device.h"
#include "engine/rng.h"
#include "tasks/train/optimizer.h"
#include "tasks/train/training_step.h"
#include "tools/margay/bench_rows.h"

namespace margay::cli {
namespace {

constexpr int64_t kTrainedLength = 256, kTrainedBatch = 16, kPrompt = 128;

/// Four layers of attention and MLP over bytes: 3.5 million parameters.
ModelConfig byte_model() {
  ModelConfig config;
  config.mixer = {"attention"};
  config.d_model = 256;
  config.n_layers = 4;
  config.n_heads = 4;
  config.vocab_size = 256;
  config.max_seq_len = 640;
  config.position = "learned";
  config.mlp = "gelu";
  return config;
}

std::vector<int32_t> random_bytes(int64_t count) {
  RandomStream random(1, 0);
  std::vector<int32_t> bytes(static_cast<size_t>(count));
  for (int32_t& byte : bytes) byte = static_cast<int32_t>(random.below(256));
  return bytes;
}

/// A batch with a label at every position.
Batch random_batch() {
  Batch batch;
  batch.examples = kTrainedBatch;
  batch.columns = kTrainedLength;
  batch.labels = kTrainedBatch * kTrainedLength;
  batch.inputs = random_bytes(batch.labels + 1);
  batch.targets.assign(batch.inputs.begin() + 1, batch.inputs.end());
  batch.inputs.pop_back();
  batch.rows.resize(static_cast<size_t>(batch.labels));
  std::iota(batch.rows.begin(), batch.rows.end(), 0);
  return batch;
}

std::function<void()> training_step(Device device) {
  const auto model = std::make_shared<LanguageModel>(byte_model(), 1, DType::f32, device);
  const auto optimizer = std::make_shared<Optimizer>(model->parameters(), TrainConfig{});
  const auto step = std::make_shared<TrainingStep>(device, true);
  return [=, batches = std::vector{random_batch()}, steps = int64_t{0}]() mutable {
    step->start(
        *model, *optimizer,
        {.batches = batches, .labels = batches[0].labels, .place = steps, .hyper = optimizer->hyper(steps, 1e-3)});
    step->finish(batches);
    ++steps;
  };
}

/// One token more for each of `batch` texts, from the prompt on; the texts begin anew where the positions end.
std::function<void()> generation_step(int64_t batch, Device device) {
  const auto model = std::make_shared<LanguageModel>(byte_model(), 1, DType::f32, device);
  const Tensor prompt = from_values(random_bytes(batch * kPrompt), {batch, kPrompt}, device);
  const Tensor next = from_values(random_bytes(batch), {batch, 1}, device);
  const auto state = std::make_shared<ModelState>();
  return [=] {
    const NoGrad no_grad;
    if (state->layers.empty() || state->position == model->config().max_seq_len) {
      *state = model->start(batch);
      model->step(prompt, *state);
    }
    model->step(next, *state);
    backend(device).synchronize();
  };
}

}  // namespace

std::vector<BenchRow> language_rows() {
  std::vector<BenchRow> rows{
      {.name = "train/byte_lm-L256", .tokens = kTrainedBatch * kTrainedLength, .flops = 0, .prepare = training_step}};
  for (const int64_t batch : {1, 16}) {
    rows.push_back({.name = fmt::format("generate/byte_lm-B{}", batch),
                    .tokens = batch,
                    .flops = 0,
                    .prepare = [batch](Device device) { return generation_step(batch, device); }});
  }
  return rows;
}

}  // namespace margay::cli
