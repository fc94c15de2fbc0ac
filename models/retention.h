#pragma once
#include "models/mixer.h"

namespace margay {

/// Retention: linear attention without a feature map, whose state decays by the constant 1 - 2^(-5 - h) in head h; then
/// RMSNorm of each head. No biases. Sun et al. 2023, arXiv:2307.08621.
std::unique_ptr<Mixer> make_retnet(const ModelConfig& config, int64_t layer, const Scope& scope);

/// Gated linear attention: every feature of a head decays by its own factor, learned from the token:
/// sigmoid(gate.fc2(gate.fc1 x))^(1/16), fc1 to 16 channels. Queries and keys have half the width of the model; RMSNorm
/// of each head. No biases but that of gate.fc2. Yang et al. 2023, arXiv:2312.06635.
/// Throws ConfigError unless 2 n_heads divides d_model.
std::unique_ptr<Mixer> make_gla(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
