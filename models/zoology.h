#pragma once
#include "models/backbone.h"

namespace margay {

/// The pre-norm backbone of the zoology experiments (Arora et al. 2023, arXiv:2312.04927):
///   h = embed(ids) (+ learned positions);  per block: r += drop(h); h = mixer(norm1(r)); r += drop(h); h =
///   mlp(norm2(r)); out = final_norm(r + h).
/// mlp "none" leaves the second half of the block out; "identity" adds norm2(r) itself, as the public code does.
/// Blocks whose mixer is mamba or mamba2 have an RMSNorm for norm1 and no second half; the final norm is a LayerNorm
/// unless model.final_norm says otherwise.
std::unique_ptr<Backbone> make_zoology(const ModelConfig& config, const Scope& scope);

}  // namespace margay
