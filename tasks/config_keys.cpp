#include <fmt/format.h>

#include "engine/error.h"
#include "tasks/config.h"
#include "tasks/registry.h"

namespace margay {
namespace {

constexpr int64_t kLongestSequence = 1 << 22;
constexpr int64_t kLargestBatch = 1 << 20;
constexpr int64_t kLargestVocabulary = (int64_t{1} << 31) - 1;  // token ids are int32

void append(std::vector<ConfigKey>& keys, std::vector<ConfigKey> more) {
  keys.insert(keys.end(), more.begin(), more.end());
}

void check_keys(const std::vector<ConfigKey>& keys) {
  for (const ConfigKey& key : keys) key.check();
}

}  // namespace

std::vector<ConfigKey> keys_of(TaskConfig& t) {
  return {
      {"task.name", &t.name},
      {"task.vocab_size", &t.vocab_size, whole(2, kLargestVocabulary)},
      {"task.seq_len", &t.seq_len, whole(1, kLongestSequence)},
      {"task.min_seq_len", &t.min_seq_len, whole(0, kLongestSequence)},
      {"task.train_examples", &t.train_examples, whole(0)},
      {"task.test_examples", &t.test_examples, whole(1)},
      {"task.seed", &t.seed},
      {"task.num_kv_pairs", &t.num_kv_pairs, whole(1, kLongestSequence)},
      {"task.power_a", &t.power_a, {.low = 0, .high = 4, .above_low = true}},
      {"task.random_non_queries", &t.random_non_queries},
      {"task.n_gram", &t.n_gram, whole(1, 64)},
      {"task.form", &t.form, one_of({"free", "pairs"})},
      {"task.n_signals", &t.n_signals, whole(1, kLargestVocabulary)},
      {"task.n_copy", &t.n_copy, whole(1, kLongestSequence)},
      {"task.unique", &t.unique},
      {"task.path", &t.path},
      {"task.tokenizer", &t.tokenizer},
      {"task.stride", &t.stride, whole(0, kLongestSequence)},
  };
}

std::vector<ConfigKey> keys_of(TrainConfig& t) {
  return {
      {"train.seed", &t.seed},
      {"train.optimizer", &t.optimizer, one_of({"adamw"})},
      {"train.lr", &t.lr, real(0)},
      {"train.betas", &t.betas, real_below(0, 1)},
      {"train.eps", &t.eps, real_between(0)},
      {"train.weight_decay", &t.weight_decay, real(0)},
      {"train.decay_groups", &t.decay_groups, one_of({"standard", "zoology"})},
      {"train.schedule", &t.schedule, one_of({"cosine", "constant", "linear"})},
      {"train.warmup_steps", &t.warmup_steps, whole(0)},
      {"train.min_lr_ratio", &t.min_lr_ratio, real(0, 1)},
      {"train.epochs", &t.epochs, whole(1)},
      {"train.steps", &t.steps, whole(0)},
      {"train.batch_size", &t.batch_size, whole(1, kLargestBatch)},
      {"train.grad_accumulation", &t.grad_accumulation, whole(1, kLargestBatch)},
      {"train.grad_clip", &t.grad_clip, real(0)},
      {"train.precision", &t.precision, one_of({"f32", "bf16"})},
      {"train.cuda_graph", &t.cuda_graph},
      {"train.shuffle", &t.shuffle},
      {"train.eval_every", &t.eval_every, whole(0)},
      {"train.stop_accuracy", &t.stop_accuracy, real(0, 1)},
      {"train.checkpoint_every", &t.checkpoint_every, whole(0)},
  };
}

std::vector<ConfigKey> keys_of(Config& config) {
  std::vector<ConfigKey> keys = keys_of(config.model);
  append(keys, keys_of(config.task));
  append(keys, keys_of(config.train));
  return keys;
}

std::string to_toml(const Config& config) {
  Config copy = config;
  std::string toml;
  std::string_view table;
  for (const ConfigKey& key : keys_of(copy)) {
    const size_t dot = key.name.rfind('.');
    if (key.name.substr(0, dot) != table) {
      table = key.name.substr(0, dot);
      toml += fmt::format("{}[{}]\n", toml.empty() ? "" : "\n", table);
    }
    toml += fmt::format("{} = {}\n", key.name.substr(dot + 1), key.value());
  }
  return toml;
}

void validate(const TaskConfig& config) {
  TaskConfig copy = config;
  check_keys(keys_of(copy));
  const TaskShape shape = find_task(config.name).shape(config);
  if (config.min_seq_len > 0 && (config.min_seq_len < shape.first_seq_len || config.min_seq_len > config.seq_len)) {
    throw ConfigError(fmt::format("task.min_seq_len must be 0, or from {} to task.seq_len = {}, got {}",
                                  shape.first_seq_len, config.seq_len, config.min_seq_len));
  }
}

void validate(const TrainConfig& config) {
  TrainConfig copy = config;
  check_keys(keys_of(copy));
}

void validate(const Config& config) {
  validate(config.model);
  validate(config.task);
  validate(config.train);
  const TaskShape shape = find_task(config.task.name).shape(config.task);
  if (shape.vocab_size > config.model.vocab_size) {
    throw ConfigError(fmt::format("model.vocab_size must be at least the {} tokens of task \"{}\", got {}",
                                  shape.vocab_size, config.task.name, config.model.vocab_size));
  }
  const int64_t columns = config.task.seq_len + shape.extra_columns;
  if (config.model.position == "learned" && columns > config.model.max_seq_len) {
    throw ConfigError(
        fmt::format("model.max_seq_len must be at least the {} tokens of an example, where positions are "
                    "learned, got {}",
                    columns, config.model.max_seq_len));
  }
  if (config.task.train_examples == 0 && config.train.steps == 0) {
    throw ConfigError("train.steps must be at least 1 where task.train_examples = 0 (no epoch ends), got 0");
  }
}

}  // namespace margay
