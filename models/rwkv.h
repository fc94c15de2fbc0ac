#pragma once
#include "models/mixer.h"

namespace margay {

/// RWKV-4's time mixing. Peng et al. 2023, arXiv:2305.13048, eqs. 16 to 20: with x' the token before x,
///   k, v, r = projections of mu x + (1 - mu) x', mu of its own each; out = output(sigmoid(r) * wkv(w, u, k, v)),
///   w = -e^time_decay, u = time_first.
std::unique_ptr<Mixer> make_rwkv(const ModelConfig& config, int64_t layer, const Scope& scope);

}  // namespace margay
