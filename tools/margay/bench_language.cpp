#include <fmt/format.h>

#include <memory>
#include <numeric>

#include "engine/autograd.h"
#include "engine/device.h"
#include "engine/rng.h"
#include "ops/precision.h"
#include "tasks/train/optimizer.h"
#include "tasks/train/training_step.h"
#include "tools/margay/bench_rows.h"

namespace margay::cli {
namespace {

constexpr int64_t kPrompt = 128;

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

/// The shape of GPT-2 small: 124 million parameters.
ModelConfig gpt_model() {
  ModelConfig config = byte_model();
  config.d_model = 768;
  config.n_layers = 12;
  config.n_heads = 12;
  config.vocab_size = 50304;
  config.max_seq_len = 1024;
  return config;
}

std::vector<int32_t> random_words(int64_t count, int64_t vocabulary) {
  RandomStream random(1, 0);
  std::vector<int32_t> words(static_cast<size_t>(count));
  for (int32_t& word : words) word = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocabulary)));
  return words;
}

/// A batch with a label at every position.
Batch random_batch(int64_t examples, int64_t length, int64_t vocabulary) {
  Batch batch;
  batch.examples = examples;
  batch.columns = length;
  batch.labels = examples * length;
  batch.inputs = random_words(batch.labels + 1, vocabulary);
  batch.targets.assign(batch.inputs.begin() + 1, batch.inputs.end());
  batch.inputs.pop_back();
  batch.rows.resize(static_cast<size_t>(batch.labels));
  std::iota(batch.rows.begin(), batch.rows.end(), 0);
  return batch;
}

std::function<void()> training_step(const ModelConfig& config, int64_t examples, int64_t length, Precision precision,
                                    Device device) {
  const auto model = std::make_shared<LanguageModel>(config, 1, DType::f32, device);
  const auto optimizer = std::make_shared<Optimizer>(model->parameters(), TrainConfig{});
  const auto step = std::make_shared<TrainingStep>(device, true);
  const std::vector<Batch> batches{random_batch(examples, length, config.vocab_size)};
  return [=, steps = int64_t{0}]() mutable {
    const PrecisionScope scope(precision);
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
  const Tensor prompt = from_values(random_words(batch * kPrompt, 256), {batch, kPrompt}, device);
  const Tensor next = from_values(random_words(batch, 256), {batch, 1}, device);
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

BenchRow training_row(const std::string& name, const ModelConfig& config, int64_t examples, int64_t length,
                      Precision precision) {
  return {.name = name,
          .tokens = examples * length,
          .needs_bf16 = precision == Precision::bf16,
          .prepare = [=](Device device) { return training_step(config, examples, length, precision, device); }};
}

}  // namespace

std::vector<BenchRow> language_rows() {
  std::vector<BenchRow> rows{training_row("train/byte_lm-L256", byte_model(), 16, 256, Precision::f32),
                             training_row("train/byte_lm-L256-bf16", byte_model(), 16, 256, Precision::bf16),
                             training_row("large/gpt-L1024", gpt_model(), 8, 1024, Precision::f32),
                             training_row("large/gpt-L1024-bf16", gpt_model(), 8, 1024, Precision::bf16)};
  for (const int64_t batch : {1, 16}) {
    rows.push_back({.name = fmt::format("generate/byte_lm-B{}", batch),
                    .tokens = batch,
                    .prepare = [batch](Device device) { return generation_step(batch, device); }});
  }
  return rows;
}

}  // namespace margay::cli
