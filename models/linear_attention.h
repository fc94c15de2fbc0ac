#pragma once
#include "models/mixer.h"

namespace margay {

/// Linear attention between projections with biases, with the feature map of config.lincat: `lincat` without its
/// filters and norms. Katharopoulos et al. 2020, arXiv:2006.16236.
std::unique_ptr<Mixer> make_linear_attention(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
