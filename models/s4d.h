#pragma once
#include "models/mixer.h"

namespace margay {

/// S4D: a diagonal state-space model for each channel, gelu, and a gated projection.
/// Gu et al. 2022, "On the Parameterization and Initialization of Diagonal State Space Models", arXiv:2206.11893.
/// Throws ConfigError unless model.s4d.d_state is even.
std::unique_ptr<Mixer> make_s4d(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
