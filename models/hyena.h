#pragma once
#include "models/mixer.h"

namespace margay {

/// The Hyena operator of order 2: projections x1, x2, v through short filters, then x2 * longconv(x1 * v) with a skip.
/// The long filter is a network of sines of the position, under a decay of its own for each channel.
/// Poli et al. 2023, "Hyena Hierarchy", arXiv:2302.10866, definition 3.1 and appendix D.3.
/// Throws ConfigError unless model.hyena.filter_embed is odd and at least 3.
std::unique_ptr<Mixer> make_hyena(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
