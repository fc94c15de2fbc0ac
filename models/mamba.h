#pragma once
#include "models/mixer.h"

namespace margay {

/// Mamba: a gated selective state-space model behind a short causal filter. Gu & Dao 2023, arXiv:2312.00752, section
/// 3.4:
///   (x, z) = in_proj(u); x = silu(conv1d(x)); (delta, B, C) = x_proj(x);
///   y = scan(x, softplus(dt_proj(delta)), A = -e^A_log, B, C, D) * silu(z); out_proj(y).
std::unique_ptr<Mixer> make_mamba(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
