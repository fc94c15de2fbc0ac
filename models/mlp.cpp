#include "models/mlp.h"

#include "models/attention_core.h"
#include "ops/glu.h"
#include "ops/unary.h"

namespace margay {

int64_t mlp_width(const ModelConfig& config) {
  return static_cast<int64_t>(config.mlp_ratio * static_cast<double>(config.d_model));
}

Mlp::Mlp(const Scope& scope, const ModelConfig& config)
    : gated_(config.mlp == "swiglu"),
      fc1_(scope / "fc1", config.d_model, mlp_width(config) * (gated_ ? 2 : 1), true, projection_init()),
      fc2_(scope / "fc2", mlp_width(config), config.d_model, true, residual_projection_init(config)) {}

Tensor Mlp::operator()(const Tensor& x) const {
  const Tensor h = fc1_(x);
  return fc2_(gated_ ? swiglu(h) : gelu(h));
}

}  // namespace margay
