#pragma once
#include <utility>

#include "models/parameter.h"

namespace margay {

/// y = x weight^T + bias, weight [out, in]; without a bias `bias` is undefined.
struct Linear {
  Tensor weight, bias;

  /// Biases start at 0.
  Linear(const Scope& scope, int64_t in, int64_t out, bool with_bias, const Initializer& weight_init);
  /// With parameters that are declared elsewhere.
  Linear(Tensor its_weight, Tensor its_bias) : weight(std::move(its_weight)), bias(std::move(its_bias)) {}
  Tensor operator()(const Tensor& x) const;
};

/// LayerNorm over the last axis, eps 1e-5.
struct LayerNorm {
  Tensor weight, bias;

  LayerNorm(const Scope& scope, int64_t width);
  Tensor operator()(const Tensor& x) const;
};

/// RMSNorm over the last axis, eps 1e-5.
struct RmsNorm {
  Tensor weight;

  RmsNorm(const Scope& scope, int64_t width);
  Tensor operator()(const Tensor& x) const;
};

/// Dropout at one place of a model: its random stream is the place's name.
struct Dropout {
  double p = 0;
  uint64_t stream = 0;

  /// x, or in training (rng i64 [2] {seed, step} given) x with a share p of its elements set to 0.
  Tensor operator()(const Tensor& x, const Tensor& rng) const;
};

}  // namespace margay
