#pragma once
#include "models/mixer.h"

namespace margay {

/// Multi-head causal softmax attention (Vaswani et al. 2017), with an optional sliding window.
std::unique_ptr<Mixer> make_attention(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
