#pragma once
#include "models/mixer.h"

namespace margay {

/// Mamba-2: heads of a state-space model with one decay each. Dao & Gu 2024, arXiv:2405.21060, section 7:
///   (z, x, B, C, dt) = in_proj(u); (x, B, C) = silu(conv1d(x, B, C)); y = ssd(x, softplus(dt + dt_bias), -e^A_log, B,
///   C, D); out_proj(RMSNorm(y * silu(z))).
/// Throws ConfigError where model.mamba.head_dim does not divide the inner width.
std::unique_ptr<Mixer> make_mamba2(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
