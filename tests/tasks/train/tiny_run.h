#pragma once
#include <cstdint>
#include <vector>

#include "engine/parallel.h"
#include "models/language_model.h"
#include "tasks/config.h"

namespace margay::test {

/// Sets the number of threads while it lives. Models this small are fastest on one.
class Threads {
 public:
  explicit Threads(int threads) : before_(num_threads()) { set_num_threads(threads); }
  ~Threads() { set_num_threads(before_); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

 private:
  int before_;
};

/// Recall that a model of 3,000 parameters works on: a step takes about a millisecond.
inline Config tiny_config() {
  Config config;
  config.model.d_model = 16;
  config.model.n_heads = 2;
  config.model.vocab_size = 64;
  config.model.max_seq_len = 16;
  config.task.vocab_size = 64;
  config.task.seq_len = 16;
  config.task.num_kv_pairs = 2;
  config.task.train_examples = 100;
  config.task.test_examples = 30;
  config.train.lr = 1e-2;
  config.train.batch_size = 8;
  config.train.steps = 20;
  return config;
}

/// All weights of a model, one after the other.
inline std::vector<float> weights_of(const LanguageModel& model) {
  std::vector<float> weights;
  for (const Parameter& parameter : model.parameters()) {
    const std::vector<float> values = parameter.value.detach().to_vector<float>();
    weights.insert(weights.end(), values.begin(), values.end());
  }
  return weights;
}

}  // namespace margay::test
