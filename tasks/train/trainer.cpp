#include "tasks/train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <string_view>
#include <utility>

#include "engine/device.h"
#include "engine/error.h"
#include "engine/parallel.h"
#include "engine/profiler.h"
#include "tasks/registry.h"
#include "tasks/train/model_file.h"
#include "tasks/train/schedule.h"

namespace margay {
namespace {

/// What may differ between a checkpoint and the run that goes on from it. Landmarks learn while all blocks are
/// retrieved; then a run may go on with fewer.
constexpr std::array<std::string_view, 7> kMayChange = {
    "train.steps",         "train.epochs",     "train.eval_every", "train.checkpoint_every",
    "train.stop_accuracy", "train.cuda_graph", "model.lcat.top_k"};

Config checked(const Config& config) {
  validate(config);
  return config;
}

void require_same(Config wanted, Config saved, const std::string& checkpoint) {
  const std::vector<ConfigKey> wanted_keys = keys_of(wanted), saved_keys = keys_of(saved);
  for (size_t i = 0; i < wanted_keys.size(); ++i) {
    const std::string value = wanted_keys[i].value(), saved_value = saved_keys[i].value();
    if (value == saved_value || std::count(kMayChange.begin(), kMayChange.end(), wanted_keys[i].name) > 0) continue;
    throw ConfigError(fmt::format("{} is {}, but the checkpoint {} was trained with {}", wanted_keys[i].name, value,
                                  checkpoint, saved_value));
  }
}

}  // namespace

Precision training_precision(const TrainConfig& config, Device device, bool cpu_has_bf16) {
  if (config.precision == "f32") return Precision::f32;
  if (device.type == DeviceType::cpu && !cpu_has_bf16) {
    throw ConfigError(
        "train.precision must be \"f32\" on this CPU, which has neither AMX-BF16 nor AVX512-BF16 instructions, got "
        "\"bf16\"");
  }
  return Precision::bf16;
}

Trainer::Trainer(const Config& config, Device device)
    : config_(checked(config)),
      device_(device),
      precision_(training_precision(config.train, device)),
      task_(make_task(config)),
      model_(config.model, static_cast<uint64_t>(config.train.seed), DType::f32, device),
      optimizer_(model_.parameters(), config.train),
      training_step_(device, config.train.cuda_graph),
      start_(Clock::now()) {
  const int64_t examples_per_step = config.train.batch_size * config.train.grad_accumulation;
  steps_per_epoch_ = (config.task.train_examples + examples_per_step - 1) / examples_per_step;
  total_steps_ = config.train.steps > 0 ? config.train.steps : checked_multiply(config.train.epochs, steps_per_epoch_);
  state_.seed = config.train.seed;
}

bool Trainer::finished() const {
  const bool good_enough = config_.train.stop_accuracy > 0 && state_.test && state_.test->step == state_.step &&
                           state_.test->accuracy >= config_.train.stop_accuracy;
  return state_.step >= total_steps_ || good_enough;
}

double Trainer::seconds_since_start() const {
  return seconds_before_ + std::chrono::duration<double>(Clock::now() - start_).count();
}

void Trainer::make_data(const Place& place, StepData& data) {
  const ProfileScope profile("data");
  const TrainConfig& train = config_.train;
  data.place.step = -1;  // nothing, if it fails
  const int64_t size = train.batch_size, all = size * train.grad_accumulation;
  const int64_t left = steps_per_epoch_ > 0 ? std::min(all, config_.task.train_examples - place.next_example) : all;
  const int64_t seq_len = batch_seq_len(*task_, train.seed, place.step);
  if (train.shuffle && steps_per_epoch_ > 0 && order_epoch_ != place.epoch) {
    order_ = shuffled_order(config_.task.train_examples, train.seed, place.epoch);
    order_epoch_ = place.epoch;
  }
  data.batches.resize(static_cast<size_t>((left + size - 1) / size));
  data.labels = data.tokens = 0;
  for (size_t i = 0; i < data.batches.size(); ++i) {
    Batch& batch = data.batches[i];
    const int64_t done = static_cast<int64_t>(i) * size, first = place.next_example + done;
    const int64_t examples = std::min(size, left - done);
    if (order_.empty()) {
      make_batch(*task_, Split::train, first, examples, seq_len, num_threads(), batch);
    } else {
      make_batch(*task_, Split::train, std::span(order_).subspan(first, examples), seq_len, num_threads(), batch);
    }
    data.labels += batch.labels;
    data.tokens += batch.examples * batch.columns;
  }
  data.next = {place.step + 1, place.epoch, place.next_example + left};
  if (steps_per_epoch_ > 0 && data.next.next_example == config_.task.train_examples) {
    data.next.next_example = 0;
    ++data.next.epoch;
  }
  data.place = place;
}

// Where the device works by itself, the batches of the next step are made meanwhile. An error waits for that step.
void Trainer::make_next_data() {
  if (device_.type == DeviceType::cpu || data_.next.step >= total_steps_) return;
  try {
    make_data(data_.next, next_data_);
  } catch (const std::exception&) {
    next_data_.place = {};
  }
}

Metrics Trainer::step() {
  const ProfileScope profile("step");
  const Clock::time_point begin = Clock::now();
  const int64_t tokens_before = state_.tokens;
  Metrics metrics;
  try {
    metrics = take_step();
  } catch (const DivergedError& error) {
    throw DivergedError(fmt::format("{} at step {}", error.what(), state_.step + 1));
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  ++state_.step;
  state_.train_seconds += seconds;
  state_.seconds = seconds_since_start();
  state_.train_loss = metrics.loss;
  metrics.step = state_.step;
  metrics.epoch = state_.epoch;
  metrics.tokens = state_.tokens;
  metrics.tokens_per_second = static_cast<double>(state_.tokens - tokens_before) / seconds;
  metrics.seconds = state_.seconds;
  metrics.peak_bytes = backend(device_).allocator().counters().peak;
  return metrics;
}

Metrics Trainer::take_step() {
  const Place place{state_.step, state_.epoch, state_.next_example};
  if (next_data_.place == place) {
    std::swap(data_, next_data_);
  } else {
    make_data(place, data_);
  }
  if (data_.labels == 0) throw DivergedError(fmt::format("the loss became {}", LossSum().mean_loss()));
  Metrics metrics;
  metrics.lr = learning_rate(config_.train, state_.step, total_steps_);
  const PrecisionScope precision(precision_);
  training_step_.start(model_, optimizer_,
                       {.batches = data_.batches,
                        .labels = data_.labels,
                        .seed = state_.seed,
                        .place = state_.step * config_.train.grad_accumulation,
                        .hyper = optimizer_.hyper(state_.step, metrics.lr)});
  make_next_data();
  const StepResult result = training_step_.finish(data_.batches);
  metrics.loss = result.sum.mean_loss();
  metrics.train_accuracy = result.sum.accuracy();
  metrics.grad_norm = result.grad_norm;
  if (!std::isfinite(metrics.loss)) throw DivergedError(fmt::format("the loss became {}", metrics.loss));
  if (!result.taken) throw DivergedError(fmt::format("the norm of the gradients became {}", metrics.grad_norm));
  state_.epoch = data_.next.epoch;
  state_.next_example = data_.next.next_example;
  state_.tokens += data_.tokens;
  return metrics;
}

Evaluation Trainer::evaluate() {
  const ProfileScope profile("evaluation");
  const PrecisionScope precision(precision_);
  const Evaluation evaluation = margay::evaluate(model_, *task_, Split::test, config_.train.batch_size);
  if (!std::isfinite(evaluation.loss)) {
    throw DivergedError(fmt::format("the test loss became {} after step {}", evaluation.loss, state_.step));
  }
  state_.test = {state_.step, evaluation.loss, evaluation.accuracy};
  return evaluation;
}

void Trainer::save(const std::string& checkpoint) {
  for (const Parameter& parameter : model_.parameters()) {
    if (!backend(device_).all_finite(parameter.value.region())) {
      throw DivergedError(fmt::format("parameter {} is not finite after step {}", parameter.name, state_.step));
    }
  }
  state_.seconds = seconds_since_start();
  save_model(checkpoint, config_, model_);
  save_tokenizer(checkpoint, task_->tokenizer_json());
  optimizer_.save(checkpoint + "/optimizer.safetensors");
  save_state(checkpoint, state_);
}

void Trainer::restore(const std::string& checkpoint) {
  const TrainState state = load_state(checkpoint);
  require_same(config_, load_checkpoint_config(checkpoint), checkpoint);
  load_parameters(checkpoint, model_);
  optimizer_.load(checkpoint + "/optimizer.safetensors");
  state_ = state;
  seconds_before_ = state.seconds;
  start_ = Clock::now();
}

bool train(Trainer& trainer, TrainObserver& observer) {
  const TrainConfig& config = trainer.config().train;
  observer.on_start(trainer);
  while (!trainer.finished()) {
    Metrics metrics = trainer.step();
    const bool last = metrics.step == trainer.total_steps();
    const bool epoch_ends = trainer.steps_per_epoch() > 0 && trainer.state().next_example == 0;
    const auto due = [&](int64_t every) { return every > 0 ? metrics.step % every == 0 : epoch_ends; };
    if (last || due(config.eval_every)) {
      const Evaluation evaluation = trainer.evaluate();
      metrics.test_loss = evaluation.loss;
      metrics.accuracy = evaluation.accuracy;
    }
    observer.on_step(trainer, metrics);
    const bool stop = observer.stop_requested() && !trainer.finished();
    if (stop || trainer.finished() || due(config.checkpoint_every)) observer.on_checkpoint(trainer);
    if (stop) return false;
  }
  return true;
}

}  // namespace margay
