#pragma once
#include "models/mixer.h"

namespace margay {

/// Convolution-augmented attention: short causal filters on queries, keys and values, then causal softmax attention.
/// Li et al. 2024, "On the Power of Convolution Augmented Transformer", arXiv:2407.05591, definition 1; the options of
/// CatConfig cover the theorem's form (filters on the layer's input, normalised rows) and the trainable one (filters on
/// the projections).
std::unique_ptr<Mixer> make_cat(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
