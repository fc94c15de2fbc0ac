#pragma once
#include <memory>

#include "models/backbone.h"
#include "models/config.h"
#include "models/parameter.h"
#include "ops/linear_cross_entropy.h"

namespace margay {

/// Name and shape of a parameter.
struct ParameterShape {
  std::string name;
  Shape shape;
};

/// The parameters of the model of a config, in the order of their declaration, without the memory that their values
/// take. Throws ConfigError as LanguageModel does.
std::vector<ParameterShape> parameter_shapes(const ModelConfig& config);

/// A causal language model: a backbone of mixers, and a head that gives every token's logits.
class LanguageModel {
 public:
  /// Makes the model with initial weights. Throws ConfigError for sizes or names that do not fit.
  LanguageModel(const ModelConfig& config, uint64_t seed, DType dtype = DType::f32, Device device = {});

  const ModelConfig& config() const { return config_; }
  /// All parameters, in the order of their declaration.
  const Parameters& parameters() const { return parameters_; }
  int64_t parameter_count() const;
  Device device() const { return device_; }

  /// ids i32 [B, L] -> logits [B, L, V], without dropout.
  /// Throws OpError for ids outside the vocabulary and for sequences longer than a length-bound model takes.
  Tensor logits(const Tensor& ids) const;

  /// Loss at some positions of a batch: ids i32 [B, L]; rows i32 [R], flat positions into [B * L], -1 = padding;
  /// targets i32 [R], the token to predict at each row, -100 = ignored. Only those rows leave the
  /// mixer of the last layer, and what they alone need of it is computed. `rng` (i64 [2] {seed, step}) switches dropout
  /// on.
  LinearCrossEntropy loss(const Tensor& ids, const Tensor& rows, const Tensor& targets, const Tensor& rng = {}) const;

  /// An empty cache for generating `batch` sequences at once.
  ModelState start(int64_t batch) const;
  /// Feeds ids i32 [B, T], T >= 1, behind what the state has seen; returns the logits [B, V] of the last of them.
  Tensor step(const Tensor& ids, ModelState& state) const;

 private:
  ModelConfig config_;
  Device device_;
  Parameters parameters_;
  std::unique_ptr<Backbone> backbone_;
};

}  // namespace margay
