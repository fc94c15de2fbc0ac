#include "models/layers.h"

#include "ops/dropout.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/rms_norm.h"

namespace margay {

Linear::Linear(const Scope& scope, int64_t in, int64_t out, bool with_bias, const Initializer& weight_init)
    : weight(scope.parameter("weight", {out, in}, weight_init)),
      bias(with_bias ? scope.parameter("bias", {out}, init::zeros(), false) : Tensor()) {}

Tensor Linear::operator()(const Tensor& x) const { return linear(x, weight, bias); }

LayerNorm::LayerNorm(const Scope& scope, int64_t width)
    : weight(scope.parameter("weight", {width}, init::ones(), false)),
      bias(scope.parameter("bias", {width}, init::zeros(), false)) {}

Tensor LayerNorm::operator()(const Tensor& x) const { return layer_norm(x, weight, bias); }

RmsNorm::RmsNorm(const Scope& scope, int64_t width) : weight(scope.parameter("weight", {width}, init::ones(), false)) {}

Tensor RmsNorm::operator()(const Tensor& x) const { return rms_norm(x, weight); }

Tensor Dropout::operator()(const Tensor& x, const Tensor& rng) const {
  return p > 0 && rng.defined() ? dropout(x, p, rng, stream) : x;
}

}  // namespace margay
