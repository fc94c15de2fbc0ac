#pragma once
#include "models/config.h"
#include "models/layers.h"

namespace margay {

/// Hidden units of the MLP: mlp_ratio d_model, rounded down.
int64_t mlp_width(const ModelConfig& config);

/// The position-wise part of a block: fc2(gelu(fc1 x)), or SwiGLU (Shazeer 2020, arXiv:2002.05202):
/// fc2(silu(gate) * value), where fc1's rows are gate, then value.
class Mlp {
 public:
  Mlp(const Scope& scope, const ModelConfig& config);
  Tensor operator()(const Tensor& x) const;

 private:
  bool gated_;
  Linear fc1_, fc2_;
};

}  // namespace margay
