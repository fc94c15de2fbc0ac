#pragma once
#include "models/mixer.h"

namespace margay {

/// DeltaNet: projections, short filters and silu make queries, keys and values; the state moves the value it holds for
/// each (unit) key towards the new one, by a learned step beta = sigmoid(beta_proj x) of each head; then RMSNorm of
/// each head. No biases. Yang et al. 2024, arXiv:2406.06484.
std::unique_ptr<Mixer> make_delta_net(const ModelConfig& config, int64_t layer, const Scope& scope);

/// Gated DeltaNet: the same with values twice as wide, a state that also decays, by -e^A_log softplus(a_proj x +
/// dt_bias) in the exponent, and results times silu(gate x) after the norm. Yang et al. 2024, arXiv:2412.06464.
std::unique_ptr<Mixer> make_gated_delta_net(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
