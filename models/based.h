#pragma once
#include "models/mixer.h"

namespace margay {

/// Linear attention with the second-order Taylor map of config.based.feature_dim query and key features a head, and
/// without biases: the part of Based that looks beyond its convolutions or windows. Arora et al. 2024,
/// arXiv:2402.18668, section 4; sizes and eps as in the zoology code base.
std::unique_ptr<Mixer> make_based(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
