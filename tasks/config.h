#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"

namespace margay {

// Defaults leave a config file free to name only what it changes. Choices in comments stand default first.

/// [task]: what is learned, and from which examples.
struct TaskConfig {
  std::string name = "mqar";        ///< a name of the task registry
  int64_t vocab_size = 8192;        ///< tokens of the task; text has as many as its tokenizer
  int64_t seq_len = 64;             ///< length of an example
  int64_t min_seq_len = 0;          ///< > 0: each training batch draws its length uniformly from here to seq_len
  int64_t train_examples = 100000;  ///< examples of an epoch, the same in each; 0 = fresh examples for ever
  int64_t test_examples = 3000;     ///< examples of an evaluation; text: at most this many windows
  int64_t seed = 123;               ///< all 64 bits count
  int64_t num_kv_pairs = 4;         ///< mqar, mqnar: pairs to remember
  double power_a = 0.01;            ///< mqar, mqnar: query slot i = 1, 2, ... has weight i^(power_a - 1)
  bool random_non_queries = false;  ///< mqar: random tokens in place of filler
  int64_t n_gram = 2;               ///< mqnar, nar: tokens of a key
  std::string form = "free";        ///< ar, nar: free: random tokens | pairs: keys and values
  int64_t n_signals = 16;           ///< selective_copy: tokens that may be signals
  int64_t n_copy = 16;              ///< selective_copy: signals to copy
  bool unique = false;              ///< selective_copy: no signal occurs twice
  std::string path = "";            ///< text: a file, or a folder of token shards
  std::string tokenizer = "bytes";  ///< text: bytes, or a tokenizer.json for a text file
  int64_t stride = 0;               ///< text: distance between held-out windows, at most seq_len; 0 = seq_len
};

/// [train]: how the model is fitted to the task.
struct TrainConfig {
  int64_t seed = 123;  ///< initial weights, dropout and order of the examples; all 64 bits count
  std::string optimizer = "adamw";
  double lr = 1e-3;                            ///< highest learning rate
  std::array<double, 2> betas = {0.9, 0.999};  ///< decay of AdamW's first and second moment
  double eps = 1e-8;                           ///< added to the root of AdamW's second moment
  double weight_decay = 0.1;                   ///< decoupled: p -= lr * weight_decay * p
  std::string decay_groups = "standard";  ///< standard: no decay of norms, biases, SSM parameters | zoology: all decay
  std::string schedule = "cosine";        ///< cosine | constant | linear
  int64_t warmup_steps = 0;               ///< the learning rate first rises linearly
  double min_lr_ratio = 0.0;              ///< last learning rate / lr
  int64_t epochs = 64;
  int64_t steps = 0;              ///< > 0 overrides epochs
  int64_t batch_size = 64;        ///< examples of a batch
  int64_t grad_accumulation = 1;  ///< batches of one optimiser step
  double grad_clip = 0.0;         ///< largest gradient norm; 0 = no limit
  std::string precision = "f32";  ///< f32 | bf16: factors of large matrix products rounded to bf16, all else f32
  bool cuda_graph = true;         ///< CUDA: a step is recorded and then launched as a whole; same results
  bool shuffle = false;           ///< each epoch in an order of its own (train_examples > 0)
  int64_t eval_every = 0;         ///< steps; 0 = each epoch
  double stop_accuracy = 0.0;     ///< stop once test accuracy reaches it; 0 = never
  int64_t checkpoint_every = 0;   ///< steps; 0 = each epoch
};

/// A whole configuration: one TOML file with the tables [model], [task] and [train].
struct Config {
  ModelConfig model;
  TaskConfig task;
  TrainConfig train;
};

/// All keys with their rules, in the order of a written file; valid while the config lives.
std::vector<ConfigKey> keys_of(TaskConfig& config);
std::vector<ConfigKey> keys_of(TrainConfig& config);
std::vector<ConfigKey> keys_of(Config& config);

/// Reads TOML text over the defaults. `source` names the text in messages. Throws ConfigError that says where: a syntax
/// error, an unknown key or table (with the nearest valid one), a wrong type or a value out of range.
Config parse_config(std::string_view toml, std::string_view source);

/// Reads a TOML file. Throws DataError if it cannot be read, else as parse_config.
Config load_config(const std::string& path);

/// Applies one "key=value", as in "model.d_model=128". The value is TOML where it parses, else a bare string. Throws
/// ConfigError and leaves the config as it was.
void apply_override(Config& config, std::string_view assignment);

/// All keys as TOML; parse_config gives back the same config, to the bit.
std::string to_toml(const Config& config);

/// Throw ConfigError unless every key is in its range, the task is known and its sizes fit. No file is opened.
void validate(const TaskConfig& config);
void validate(const TrainConfig& config);
/// All of the above, and what training and evaluation need: the task's tokens and positions fit the model, and training
/// has an end.
void validate(const Config& config);

}  // namespace margay
