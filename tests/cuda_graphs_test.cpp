// Training steps as graphs of a GPU, against the same steps op by op. Skipped, and counted as skipped, where there is
// no GPU.

#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/capture.h"
#include "engine/error.h"
#include "engine/profiler.h"
#include "models/mixer.h"
#include "tasks/train/trainer.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/train/tiny_run.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

bool no_gpu() { return cuda_device_count() == 0; }

/// One layer over a few tokens: the emulator runs every thread of a GPU on its own.
Config small_run(const std::string& mixer) {
  Config config = tiny_config();
  config.model.mixer = {mixer};
  config.model.d_model = 8;
  config.model.lcat.block_size = 4;
  config.model.lcat.top_k = 2;
  config.model.mamba.d_state = 4;
  config.model.mamba.head_dim = 8;
  config.task.test_examples = 4;
  config.train.batch_size = 2;
  config.train.steps = 100;
  return config;
}

Config without_graphs(Config config) {
  config.train.cuda_graph = false;
  return config;
}

/// What a step tells, but for its time.
std::vector<double> numbers_of(const Metrics& metrics) {
  return {static_cast<double>(metrics.step),
          static_cast<double>(metrics.epoch),
          static_cast<double>(metrics.tokens),
          metrics.loss,
          metrics.train_accuracy,
          metrics.grad_norm,
          metrics.lr};
}

/// A token at a time, as generation does.
std::vector<float> generated_logits(const LanguageModel& model) {
  const NoGrad no_grad;
  ModelState state = model.start(1);
  std::vector<float> logits;
  for (int32_t token = 0; token < 3; ++token) {
    const Tensor ids = from_values({token}, {1, 1}, kGpu);
    const std::vector<float> step = model.step(ids, state).to_vector<float>();
    logits.insert(logits.end(), step.begin(), step.end());
  }
  return logits;
}

/// Trains with and without graphs, with tests and generation in between. Returns how many steps were replayed.
int64_t check_same_training(const Config& config, int64_t steps) {
  Trainer graphs(config, kGpu), plain(without_graphs(config), kGpu);
  for (int64_t step = 0; step < steps; ++step) {
    REQUIRE(numbers_of(graphs.step()) == numbers_of(plain.step()));
    if (step % 7 == 5) {
      CHECK(graphs.evaluate().loss == plain.evaluate().loss);
      CHECK(generated_logits(graphs.model()) == generated_logits(plain.model()));
    }
  }
  CHECK(weights_of(graphs.model()) == weights_of(plain.model()));
  CHECK(graphs.training_step().refusal() == "");
  CHECK(plain.training_step().replayed() == 0);
  return graphs.training_step().replayed();
}

/// One example, in which 5 is to be predicted at some places.
Batch batch_of(const std::vector<int32_t>& ids, const std::vector<int32_t>& rows) {
  Batch batch;
  batch.examples = 1;
  batch.columns = static_cast<int64_t>(ids.size());
  batch.labels = static_cast<int64_t>(rows.size());
  batch.inputs = ids;
  batch.targets.assign(ids.size(), kIgnoredTarget);
  batch.rows = rows;
  for (const int32_t row : rows) batch.targets[static_cast<size_t>(row)] = 5;
  return batch;
}

/// Every option that could tell two ways of training apart.
Config demanding_run() {
  Config config = small_run("cat");
  config.model.mlp = "gelu";
  config.model.dropout_embed = config.model.dropout_residual = config.model.dropout_attention = 0.1;
  config.task.train_examples = 19;  // an epoch ends with a batch of 1, and then one of 2 and one of 1
  config.task.min_seq_len = 12;
  config.train.shuffle = true;
  config.train.grad_accumulation = 2;
  config.train.grad_clip = 0.5;
  config.train.warmup_steps = 3;
  return config;
}

}  // namespace

TEST_CASE("cuda graphs: steps have the bits of steps op by op" * doctest::skip(no_gpu())) {
  const Threads single(1);
  SUBCASE("cat") { CHECK(check_same_training(small_run("cat"), 30) == 28); }
  SUBCASE("attention") { CHECK(check_same_training(small_run("attention"), 7) == 5); }
  SUBCASE("mamba") { CHECK(check_same_training(small_run("mamba"), 7) == 5); }
  SUBCASE("lcat") { CHECK(check_same_training(small_run("lcat"), 7) == 5); }
  SUBCASE("dropout") {
    Config config = small_run("cat");
    config.model.dropout_embed = config.model.dropout_residual = config.model.dropout_attention = 0.2;
    CHECK(check_same_training(config, 7) == 5);
  }
  SUBCASE("several batches a step, clipped") {
    Config config = small_run("cat");
    config.train.grad_accumulation = 3;
    config.train.grad_clip = 0.1;
    CHECK(check_same_training(config, 7) == 5);
  }
  SUBCASE("rotary positions and two lengths") {
    Config config = small_run("attention");
    config.model.position = "rope";
    config.task.min_seq_len = 14;
    CHECK(check_same_training(config, 12) == 8);
  }
  SUBCASE("all at once") { CHECK(check_same_training(demanding_run(), 12) > 3); }
}

TEST_CASE("cuda graphs: those of the shapes that were used last are kept" * doctest::skip(no_gpu())) {
  const Threads single(1);
  const LanguageModel model(small_run("cat").model, 1, DType::f32, kGpu);
  Optimizer optimizer(model.parameters(), {});
  TrainingStep training(kGpu, true);
  const auto step = [&](int64_t columns) {
    const std::vector<Batch> batches(1, batch_of(std::vector<int32_t>(static_cast<size_t>(columns), 1), {0}));
    training.start(model, optimizer, {batches, 1, 0, 0, optimizer.hyper(0, 0.1)});
    CHECK(training.finish(batches).taken);
    return training.replayed();
  };
  const auto most = static_cast<int64_t>(TrainingStep::kMostShapes);
  for (int64_t columns = 1; columns <= most; ++columns) step(columns);
  step(1);
  CHECK(step(1) == 1);
  step(most + 1);  // in the place of 2
  CHECK(step(1) == 2);
  step(2);  // in the place of 3
  CHECK(step(2) == 2);
  CHECK(step(2) == 3);
  CHECK(training.refusal() == "");
}

TEST_CASE("cuda graphs: the step of every model can be recorded" * doctest::skip(no_gpu())) {
  const Threads single(1);
  for (const std::string& mixer : mixer_names()) {
    CAPTURE(mixer);
    CHECK(check_same_training(small_run(mixer), 3) == 1);
  }
  Config config = small_run("cat");
  config.model.backbone = "gpt_neox";
  config.model.position = "rope";
  config.model.rope_fraction = 0.5;
  CHECK(check_same_training(config, 3) == 1);
}

TEST_CASE("cuda graphs: a run that was saved and restored has the bits of one that went on" * doctest::skip(no_gpu())) {
  const Threads single(1);
  const TempDir dir;
  const Config config = demanding_run();
  Trainer straight(config, kGpu);
  std::vector<std::vector<double>> all;
  for (int step = 0; step < 14; ++step) all.push_back(numbers_of(straight.step()));
  for (const int stop : {5, 9}) {  // an epoch has 5 steps
    CAPTURE(stop);
    const std::string folder = dir.file(std::to_string(stop));
    Trainer first(config, kGpu);
    for (int step = 0; step < stop; ++step) first.step();
    first.save(folder);
    Trainer second(without_graphs(config), kGpu);
    second.restore(folder);
    for (int step = stop; step < 14; ++step) CHECK(numbers_of(second.step()) == all[static_cast<size_t>(step)]);
    CHECK(weights_of(second.model()) == weights_of(straight.model()));
    // Back to where it was saved, with graphs that are there already.
    for (int step = 0; step < 3; ++step) first.step();
    first.restore(folder);
    for (int step = stop; step < 14; ++step) CHECK(numbers_of(first.step()) == all[static_cast<size_t>(step)]);
    CHECK(weights_of(first.model()) == weights_of(straight.model()));
    CHECK(first.training_step().replayed() > 0);
  }
}

TEST_CASE("cuda graphs: a replayed step that diverges is an error and changes nothing" * doctest::skip(no_gpu())) {
  const Threads single(1);
  Config config = small_run("cat");
  config.train.grad_clip = 1;
  Trainer spoilt(config, kGpu), twin(config, kGpu);
  for (int step = 0; step < 5; ++step) {
    spoilt.step();
    twin.step();
  }
  const TrainState before = spoilt.state();
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const Tensor weight = spoilt.model().parameters()[0].value.detach(), whole = weight.clone();
    weight.fill(bad);
    CHECK_THROWS_WITH_AS(spoilt.step(), doctest::Contains(" at step 6"), DivergedError);
    weight.copy_from(whole);
    CHECK(spoilt.state().step == before.step);
    CHECK(spoilt.state().tokens == before.tokens);
    CHECK(weights_of(spoilt.model()) == weights_of(twin.model()));
  }
  CHECK(spoilt.training_step().replayed() == 5);
  for (int step = 0; step < 5; ++step) CHECK(numbers_of(spoilt.step()) == numbers_of(twin.step()));
  CHECK(weights_of(spoilt.model()) == weights_of(twin.model()));
}

TEST_CASE("cuda graphs: a step that needs the host, or fails while it is recorded, runs op by op" *
          doctest::skip(no_gpu())) {
  const Threads single(1);
  const Config config = small_run("cat");
  std::function<void(const Tensor&)> look;
  std::string refusal;
  SUBCASE("it reads a gradient") {
    look = [](const Tensor& gradient) { gradient.to_vector<float>(); };
    refusal = "cuda:0: a copy to the host cannot be recorded, in backward";
  }
  SUBCASE("it throws") {
    look = [](const Tensor&) {
      if (Capture::current()) throw std::runtime_error("of its own");
    };
    refusal = "of its own";
  }
  Trainer trainer(config, kGpu), plain(without_graphs(config), kGpu);
  Tensor(trainer.model().parameters()[0].value).register_hook([&](const Tensor& gradient) {
    look(gradient);
    return Tensor();
  });
  for (int step = 0; step < 6; ++step) CHECK(numbers_of(trainer.step()) == numbers_of(plain.step()));
  CHECK(trainer.evaluate().loss == plain.evaluate().loss);
  CHECK(weights_of(trainer.model()) == weights_of(plain.model()));
  CHECK(trainer.training_step().replayed() == 0);
  CHECK(trainer.training_step().refusal() == refusal);
}

TEST_CASE("cuda graphs: a profiler sees the ops" * doctest::skip(no_gpu())) {
  const Threads single(1);
  Trainer trainer(small_run("cat"), kGpu);
  for (int step = 0; step < 4; ++step) trainer.step();
  CHECK(trainer.training_step().replayed() == 2);
  const Profiler profiler(kGpu);
  trainer.step();
  CHECK(trainer.training_step().replayed() == 2);
  const auto is_optimizer = [](const ProfileEvent& event) { return event.name == "adamw_step"; };
  CHECK(std::ranges::count_if(profiler.events(), is_optimizer) == 1);
}

TEST_CASE("cuda graphs: a gradient that spans a replayed step is an error, as it is op by op" *
          doctest::skip(no_gpu())) {
  const Threads single(1);
  Trainer trainer(small_run("cat"), kGpu);
  for (int step = 0; step < 4; ++step) trainer.step();
  const Tensor ids = from_values({1, 2, 3}, {1, 3}, kGpu), rows = from_values({0, 1}, {2}, kGpu);
  const LinearCrossEntropy result = trainer.model().loss(ids, rows, rows);
  trainer.step();
  CHECK(trainer.training_step().replayed() == 3);
  CHECK_THROWS_AS(result.loss.backward(), std::logic_error);
}

TEST_CASE("cuda graphs: replays take no memory, and it goes back with the trainer" * doctest::skip(no_gpu())) {
  const Threads single(1);
  CachingAllocator& allocator = backend(kGpu).allocator();
  const int64_t live = allocator.counters().live;
  {
    Trainer trainer(small_run("cat"), kGpu);
    for (int step = 0; step < 4; ++step) trainer.step();
    const int64_t reserved = allocator.counters().reserved, with_trainer = allocator.counters().live;
    for (int step = 0; step < 4; ++step) trainer.step();
    CHECK(allocator.counters().reserved == reserved);
    CHECK(allocator.counters().live == with_trainer);
  }
  CHECK(allocator.counters().live == live);
}

TEST_CASE("cuda graphs: a token outside of the vocabulary is found before the step" * doctest::skip(no_gpu())) {
  const LanguageModel model(small_run("cat").model, 1, DType::f32, kGpu);
  TrainConfig config;
  Optimizer optimizer(model.parameters(), config);
  TrainingStep step(kGpu, true);
  std::vector<Batch> batches(1, batch_of({1, 64, 2}, {1}));
  const StepArguments arguments{batches, 1, 0, 0, optimizer.hyper(0, 0.1)};
  CHECK_THROWS_WITH_AS(step.start(model, optimizer, arguments), doctest::Contains("embedding: ids must be"), OpError);
  batches[0].inputs[1] = 63;
  batches[0].targets[1] = 64;
  CHECK_THROWS_AS(step.start(model, optimizer, arguments), OpError);
  batches[0].targets[1] = 63;
  step.start(model, optimizer, arguments);
  CHECK(step.finish(batches).taken);
}

TEST_CASE("training step: rows that are padding change nothing") {
  for (const Device device : {Device{}, kGpu}) {
    if (device == kGpu && no_gpu()) continue;
    CAPTURE(to_string(device));
    const Threads single(1);
    const ModelConfig model_config = small_run("cat").model;
    std::vector<std::vector<float>> weights;
    for (const int64_t padding : {0, 3}) {
      const LanguageModel model(model_config, 1, DType::f32, device);
      TrainConfig config;
      Optimizer optimizer(model.parameters(), config);
      TrainingStep step(device, true);
      std::vector<Batch> batches(1, batch_of({1, 5, 2, 7}, {1, 3}));
      batches[0].rows.resize(static_cast<size_t>(2 + padding), -1);
      for (int64_t t = 0; t < 3; ++t) {
        step.start(model, optimizer, {batches, 2, 0, t, optimizer.hyper(t, 0.1)});
        const StepResult result = step.finish(batches);
        CHECK(result.taken);
        CHECK(result.sum.labels == 2);
        CHECK(std::isfinite(result.sum.mean_loss()));
      }
      weights.push_back(weights_of(model));
    }
    for (size_t i = 0; i < weights[0].size(); ++i)
      CHECK(weights[0][i] == doctest::Approx(weights[1][i]).epsilon(1e-3).scale(0.1));
  }
}

}  // namespace margay::test
