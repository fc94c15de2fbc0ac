#pragma once
#include "models/mixer.h"

namespace margay {

/// Convolution-augmented linear attention: the front end of `cat`, with every option of config.cat, before linear
/// attention with the feature map of config.lincat. Li et al. 2024, arXiv:2407.05591, figure 2.
std::unique_ptr<Mixer> make_lincat(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
