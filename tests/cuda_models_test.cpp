// Whole models on a GPU against the CPU. Skipped, and counted as skipped, where there is no GPU.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "models/mixer.h"
#include "tasks/train/trainer.h"
#include "tests/models/small_model.h"
#include "tests/support/compare.h"
#include "tests/tasks/train/tiny_run.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};
constexpr int64_t kBatch = 2, kLength = 9;

bool no_gpu() { return cuda_device_count() == 0; }

/// Every mixer, and the other backbone.
std::vector<ModelConfig> configs() {
  std::vector<ModelConfig> list;
  for (const std::string& mixer : mixer_names()) {
    list.push_back(small_config());
    list.back().mixer = {mixer};
    list.back().n_layers = 2;
    list.back().mlp = list.size() % 2 == 0 ? "gelu" : "swiglu";
    list.back().lcat.block_size = 4;
    list.back().lcat.top_k = 2;
    list.back().mamba.head_dim = 12;
    list.back().mamba.d_state = 8;
  }
  for (const char* mixer : {"attention", "cat"}) {
    list.push_back(small_config());
    list.back().backbone = "gpt_neox";
    list.back().mixer = {mixer};
    list.back().position = "rope";
    list.back().rope_fraction = 0.5;
  }
  return list;
}

struct Results {
  Tensor logits, loss, nll;
  Tensors gradients;  // of the parameters, in their order
};

Results run(const ModelConfig& config, DType dtype, Device device) {
  const LanguageModel model(config, 7, dtype, device);
  const Tensor ids = from_values(some_ids(kBatch * kLength, config.vocab_size, 1), {kBatch, kLength}, device);
  // Every third position has a label: few enough that a last layer of attention computes no other.
  constexpr int64_t labels = kBatch * kLength / 3;
  const Tensor targets = from_values(some_ids(labels, config.vocab_size, 2), {labels}, device);
  std::vector<int32_t> rows(static_cast<size_t>(labels));
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int32_t>(3 * i + 2);
  Results results;
  results.logits = model.logits(ids);
  const LinearCrossEntropy result = model.loss(ids, from_values(rows, {labels}, device), targets);
  results.loss = result.loss;
  results.nll = result.nll;
  result.loss.backward();
  for (const Parameter& parameter : model.parameters()) results.gradients.push_back(parameter.value.grad());
  return results;
}

double largest(const Tensor& tensor) {
  double most = 0;
  for (const double value : tensor.to(DType::f64).to_vector<double>()) most = std::max(most, std::abs(value));
  return most;
}

/// Gradients that are small beside those of other parameters may be all rounding, as that of a key's bias is.
void check_same_gradients(const Tensors& gpu, const Tensors& cpu, double tolerance) {
  double most = 0;
  for (const Tensor& gradient : cpu)
    if (gradient.defined()) most = std::max(most, largest(gradient));
  for (size_t i = 0; i < cpu.size(); ++i) {
    REQUIRE(gpu[i].defined() == cpu[i].defined());
    if (!cpu[i].defined()) continue;
    const std::vector<double> got = gpu[i].to(DType::f64).to_vector<double>();
    const std::vector<double> expected = cpu[i].to(DType::f64).to_vector<double>();
    double worst = 0;
    for (size_t j = 0; j < expected.size(); ++j) worst = std::max(worst, std::abs(got[j] - expected[j]));
    CHECK(worst <= tolerance * std::max(largest(cpu[i]), 1e-3 * most));
  }
}

void check_same(const Tensor& gpu, const Tensor& cpu, double tolerance) {
  CHECK(difference_relative_to_max(gpu.to(Device{}), cpu, tolerance) == "");
}

}  // namespace

TEST_CASE("cuda: logits, loss and every gradient of every model are the CPU's" * doctest::skip(no_gpu())) {
  for (const ModelConfig& config : configs()) {
    CAPTURE(config.backbone);
    CAPTURE(config.mixer[0]);
    for (const DType dtype : {DType::f64, DType::f32}) {
      const double tolerance = dtype == DType::f64 ? 1e-9 : 1e-3;
      const Results gpu = run(config, dtype, kGpu), cpu = run(config, dtype, {});
      check_same(gpu.logits, cpu.logits, tolerance);
      check_same(gpu.loss, cpu.loss, tolerance);
      check_same(gpu.nll, cpu.nll, tolerance);
      check_same_gradients(gpu.gradients, cpu.gradients, tolerance);
    }
  }
}

TEST_CASE("cuda: one token at a time gives the logits of the whole sequence" * doctest::skip(no_gpu())) {
  const NoGrad no_grad;
  for (const ModelConfig& config : configs()) {
    CAPTURE(config.mixer[0]);
    const LanguageModel model(config, 7, DType::f64, kGpu);
    const std::vector<int32_t> ids = some_ids(kLength, config.vocab_size, 1);
    const Tensor all = model.logits(from_values(ids, {1, kLength}, kGpu)).to(Device{});
    ModelState state = model.start(1);
    for (int64_t t = 0; t < kLength; ++t) {
      const Tensor step = model.step(from_values({ids[static_cast<size_t>(t)]}, {1, 1}, kGpu), state);
      const Tensor expected = all.view({1, config.vocab_size}, {config.vocab_size, 1}, t * config.vocab_size);
      CHECK(difference_relative_to_max(step.to(Device{}), expected.clone(), 1e-9) == "");
    }
  }
}

TEST_CASE("cuda: 200 training steps stay together with the CPU's" * doctest::skip(no_gpu())) {
  Config config = tiny_config();
  config.model.mixer = {"cat"};
  config.model.d_model = 8;
  config.train.batch_size = 2;
  config.train.steps = 200;
  Trainer cpu(config), gpu(config, kGpu);
  for (int64_t step = 0; step < config.train.steps; ++step) {
    const double expected = cpu.step().loss, got = gpu.step().loss;
    CHECK(std::abs(got - expected) <= 1e-3 * std::abs(expected) + 1e-4);
  }
  CHECK(gpu.evaluate().loss == doctest::Approx(cpu.evaluate().loss).epsilon(1e-2));
}

TEST_CASE("cuda: training in bf16 stays close to the CPU's, with bits of its own" * doctest::skip(no_gpu())) {
  Config config = tiny_config();
  config.model.d_model = 32;
  const auto train = [&](const char* precision, Device device, size_t steps) {
    config.train.precision = precision;
    Trainer trainer(config, device);
    std::vector<double> losses;
    while (losses.size() < steps) losses.push_back(trainer.step().loss);
    return losses;
  };
  const std::vector<double> rounded = train("bf16", kGpu, 10), exact = train("f32", kGpu, 2);
  const std::vector<double> cpu = train(cpu_has_bf16_products() ? "bf16" : "f32", {}, rounded.size());
  CHECK(rounded.back() < 0.99 * rounded.front());
  for (size_t i = 0; i < rounded.size(); ++i) {
    CAPTURE(i);
    CHECK(rounded[i] == doctest::Approx(cpu[i]).epsilon(0.02));
  }
  for (size_t i = 0; i < exact.size(); ++i) CHECK(rounded[i] != exact[i]);
}

}  // namespace margay::test
