#include "tasks/train/trainer.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <set>
#include <vector>

#include "engine/error.h"
#include "tests/support/temp_dir.h"
#include "tests/tasks/train/tiny_run.h"

using namespace margay;
using margay::test::tiny_config;
using margay::test::weights_of;

namespace {

std::vector<float> weights_after(const Config& config, int64_t steps, int threads = 1) {
  const test::Threads scope(threads);
  Trainer trainer(config);
  for (int64_t step = 0; step < steps; ++step) trainer.step();
  return weights_of(trainer.model());
}

/// Every option that could tell two ways of training apart.
Config demanding_config() {
  Config config = tiny_config();
  config.model.n_layers = 2;
  config.model.mixer = {"cat", "attention"};
  config.model.mlp = "gelu";
  config.model.dropout_embed = 0.1;
  config.model.dropout_residual = 0.1;
  config.model.dropout_attention = 0.1;
  config.task.min_seq_len = 8;
  config.train.shuffle = true;
  config.train.grad_accumulation = 2;
  config.train.grad_clip = 1;
  config.train.steps = 40;
  config.train.warmup_steps = 3;
  return config;
}

}  // namespace

TEST_CASE("trainer: same seed, same bits, for 1, 2 and 3 threads; another seed, other bits") {
  Config config = tiny_config();
  config.train.steps = 200;
  const std::vector<float> once = weights_after(config, 200);
  CHECK(once == weights_after(config, 200));
  CHECK(once == weights_after(config, 200, 2));
  CHECK(once == weights_after(config, 200, 3));
  config.train.seed = 124;
  CHECK(once != weights_after(config, 200));
}

TEST_CASE("trainer: a saved and restored run has the bits of one that never stopped") {
  const test::Threads single(1);
  const test::TempDir dir;
  const Config config = demanding_config();
  Trainer straight(config);
  std::vector<double> losses;
  for (int step = 0; step < 20; ++step) losses.push_back(straight.step().loss);
  for (const int stop : {1, 6, 7, 13}) {  // 7 steps make an epoch
    CAPTURE(stop);
    const std::string folder = dir.file(std::to_string(stop));
    {
      Trainer first(config);
      for (int step = 0; step < stop; ++step) first.step();
      if (stop == 6) first.evaluate();
      first.save(folder);
    }
    Trainer second(config);
    second.restore(folder);
    CHECK(second.state().step == stop);
    for (int step = stop; step < 20; ++step) CHECK(second.step().loss == losses[static_cast<size_t>(step)]);
    CHECK(weights_of(second.model()) == weights_of(straight.model()));
    CHECK(second.state().tokens == straight.state().tokens);
    CHECK(second.state().epoch == straight.state().epoch);
    CHECK(second.state().next_example == straight.state().next_example);
  }
}

TEST_CASE("trainer: testing and saving change no bit") {
  const test::Threads single(1);
  const test::TempDir dir;
  const Config config = demanding_config();
  Trainer plain(config), busy(config);
  for (int step = 0; step < 12; ++step) {
    plain.step();
    busy.step();
    busy.evaluate();
    busy.save(dir.file("checkpoint"));
  }
  CHECK(weights_of(plain.model()) == weights_of(busy.model()));
}

TEST_CASE("trainer: k batches of b are one batch of k b") {
  const test::Threads single(1);
  Config one = tiny_config(), several = tiny_config();
  one.train.batch_size = 24;
  several.train.batch_size = 8;
  several.train.grad_accumulation = 3;
  Trainer a(one), b(several);
  CHECK(a.steps_per_epoch() == b.steps_per_epoch());
  for (int step = 0; step < 10; ++step) {  // over the end of an epoch, whose last step has 4 examples
    const Metrics x = a.step(), y = b.step();
    CHECK(x.loss == doctest::Approx(y.loss).epsilon(1e-4));
    CHECK(x.tokens == y.tokens);
    CHECK(x.epoch == y.epoch);
  }
  const std::vector<float> wa = weights_of(a.model()), wb = weights_of(b.model());
  for (size_t i = 0; i < wa.size(); ++i) CHECK(wa[i] == doctest::Approx(wb[i]).epsilon(1e-2).scale(1));
}

TEST_CASE("trainer: an epoch keeps its smaller last batch") {
  const test::Threads single(1);
  Config config = tiny_config();
  config.train.steps = 0;
  config.train.epochs = 2;
  Trainer trainer(config);
  CHECK(trainer.steps_per_epoch() == 13);
  CHECK(trainer.total_steps() == 26);
  for (int step = 0; step < 12; ++step) trainer.step();
  CHECK(trainer.state().next_example == 96);
  CHECK(trainer.step().epoch == 1);
  CHECK(trainer.state().next_example == 0);
  CHECK(trainer.state().tokens == 100 * 16);
  while (!trainer.finished()) trainer.step();
  CHECK(trainer.state().tokens == 200 * 16);
  CHECK(trainer.state().epoch == 2);
}

TEST_CASE("trainer: fresh examples never end") {
  const test::Threads single(1);
  Config config = tiny_config();
  config.task.train_examples = 0;
  Trainer trainer(config);
  CHECK(trainer.steps_per_epoch() == 0);
  for (int step = 0; step < 20; ++step) trainer.step();
  CHECK(trainer.finished());
  CHECK(trainer.state().next_example == 160);
  CHECK(trainer.state().epoch == 0);
}

TEST_CASE("trainer: recall is learned") {
  const test::Threads single(1);
  Config config = tiny_config();
  config.task.train_examples = 0;
  config.task.test_examples = 200;
  config.train.batch_size = 32;
  config.train.steps = 300;
  Trainer trainer(config);
  const double before = trainer.evaluate().loss;
  while (!trainer.finished()) trainer.step();
  const Evaluation after = trainer.evaluate();
  CHECK(before > 3.5);
  CHECK(after.loss < 1);
  CHECK(after.accuracy > 0.7);
}

TEST_CASE("train: tests, saves and stops when it should") {
  const test::Threads single(1);
  struct Recorder final : TrainObserver {
    std::vector<int64_t> steps, tests, saves;
    int64_t stop_at = 0, now = 0;
    void on_step(const Trainer&, const Metrics& metrics) override {
      now = metrics.step;
      steps.push_back(now);
      if (metrics.accuracy) tests.push_back(now);
    }
    void on_checkpoint(Trainer&) override { saves.push_back(now); }
    bool stop_requested() override { return now == stop_at; }
  };
  using Steps = std::vector<int64_t>;
  Config config = tiny_config();

  SUBCASE("every few steps, and at the end") {
    config.train.eval_every = 6;
    config.train.checkpoint_every = 8;
    Trainer trainer(config);
    Recorder recorder;
    CHECK(train(trainer, recorder));
    CHECK(recorder.steps.size() == 20);
    CHECK(recorder.tests == Steps{6, 12, 18, 20});
    CHECK(recorder.saves == Steps{8, 16, 20});
    CHECK(train(trainer, recorder));  // finished: nothing happens
    CHECK(recorder.steps.size() == 20);
  }
  SUBCASE("every epoch") {
    Trainer trainer(config);
    Recorder recorder;
    CHECK(train(trainer, recorder));
    CHECK(recorder.tests == Steps{13, 20});
    CHECK(recorder.saves == Steps{13, 20});
  }
  SUBCASE("early, when the accuracy is reached") {
    config.train.eval_every = 2;
    config.train.stop_accuracy = 1e-9;
    config.train.lr = 0.05;
    config.train.steps = 400;
    Trainer trainer(config);
    Recorder recorder;
    CHECK(train(trainer, recorder));
    CHECK(trainer.finished());
    CHECK(recorder.steps.size() < 400);
    CHECK(recorder.tests.back() == recorder.steps.back());
    CHECK(recorder.saves.back() == recorder.steps.back());
  }
  SUBCASE("when it is asked to") {
    Trainer trainer(config);
    Recorder recorder;
    recorder.stop_at = 5;
    CHECK_FALSE(train(trainer, recorder));
    CHECK(recorder.saves == Steps{5});
    CHECK_FALSE(trainer.finished());
    recorder.stop_at = 0;
    CHECK(train(trainer, recorder));
    CHECK(recorder.steps.size() == 20);
  }
}

TEST_CASE("trainer: divergence is an error that leaves the weights as they were") {
  const test::Threads single(1);
  Config config = tiny_config();
  config.train.lr = 1e30;
  Trainer trainer(config);
  std::vector<float> before;
  int64_t steps = 0;
  const auto diverge = [&] {
    for (; steps < 20; ++steps) {
      before = weights_of(trainer.model());
      trainer.step();
    }
  };
  CHECK_THROWS_WITH_AS(diverge(), doctest::Contains(" at step "), DivergedError);
  CHECK(trainer.state().step == steps);
  CHECK(weights_of(trainer.model()) == before);
  const test::TempDir dir;
  trainer.model().parameters()[0].value.detach().fill(std::numeric_limits<double>::infinity());
  CHECK_THROWS_WITH_AS(trainer.save(dir.file("checkpoint")), doctest::Contains("embed.weight is not finite"),
                       DivergedError);
  CHECK_THROWS_AS(trainer.evaluate(), DivergedError);
}

TEST_CASE("trainer: a checkpoint of another configuration is refused") {
  const test::Threads single(1);
  const test::TempDir dir;
  const std::string folder = dir.file("checkpoint");
  Config config = tiny_config();
  Trainer(config).save(folder);
  config.train.steps = 50;
  config.train.eval_every = 3;
  config.train.stop_accuracy = 0.5;
  Trainer(config).restore(folder);
  config.train.lr = 0.5;
  CHECK_THROWS_WITH_AS(Trainer(config).restore(folder), doctest::Contains("train.lr is 0.5"), ConfigError);
}

TEST_CASE("trainer: bf16 learns as f32 does, with other bits") {
  Config config = tiny_config();
  config.model.d_model = 32;
  config.train.precision = "bf16";
  if (!cpu_has_bf16_products()) {
    MESSAGE("skipped: this CPU does not multiply bf16");
    CHECK_THROWS_AS(Trainer{config}, ConfigError);
    return;
  }
  const test::Threads single(1);
  const auto train = [](const Config& wanted) {
    Trainer trainer(wanted);
    std::vector<double> losses;
    for (int64_t step = 0; step < 20; ++step) losses.push_back(trainer.step().loss);
    losses.push_back(trainer.evaluate().loss);
    CHECK(product_precision() == Precision::f32);
    return losses;
  };
  const std::vector<double> rounded = train(config);
  config.train.precision = "f32";
  const std::vector<double> exact = train(config);
  CHECK(exact[19] < 0.97 * exact[0]);
  for (size_t i = 0; i < exact.size(); ++i) {
    CAPTURE(i);
    CHECK(rounded[i] == doctest::Approx(exact[i]).epsilon(0.02));
    CHECK(rounded[i] != exact[i]);
  }
}

TEST_CASE("trainer: bf16 is refused where the CPU does not have it") {
  TrainConfig config;
  CHECK(training_precision(config, {}, false) == Precision::f32);
  CHECK(training_precision(config, {DeviceType::cuda, 0}, false) == Precision::f32);
  config.precision = "bf16";
  CHECK(training_precision(config, {}, true) == Precision::bf16);
  CHECK(training_precision(config, {DeviceType::cuda, 0}, false) == Precision::bf16);
  CHECK_THROWS_WITH_AS(training_precision(config, {}, false),
                       "train.precision must be \"f32\" on this CPU, which has neither AMX-BF16 nor AVX512-BF16 "
                       "instructions, got \"bf16\"",
                       ConfigError);
}
