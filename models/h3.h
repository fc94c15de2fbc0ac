#pragma once
#include "models/mixer.h"

namespace margay {

/// H3: q * diag(shift(k) v^T) by heads: a learned shift of the keys, their outer product with the values, a diagonal
/// state-space model over it, and its product with the queries.
/// Fu et al. 2023, "Hungry Hungry Hippos", arXiv:2212.14052, algorithm 1.
/// Throws ConfigError unless model.h3.head_dim divides d_model and model.h3.d_state is even.
std::unique_ptr<Mixer> make_h3(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
