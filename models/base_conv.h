#pragma once
#include "models/mixer.h"

namespace margay {

/// y = conv(x) * (W x + b) + x, elementwise product; by layer a short filter with a bias, or one as long as the
/// sequence that a small network makes from the position, and then conv(x) + x in place of conv(x).
/// Arora et al. 2023, "Zoology", arXiv:2312.04927, section 4.
std::unique_ptr<Mixer> make_base_conv(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
