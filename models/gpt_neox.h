#pragma once
#include "models/backbone.h"

namespace margay {

/// The backbone of GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745, section 2.1; Biderman et al. 2023,
/// arXiv:2304.01373), with attention and MLP side by side in every block:
///   h = embed(ids) (+ learned positions);  per block: h += attention(norm1(h)) + mlp(norm2(h));  out = final_norm(h),
/// mlp(x) = down(gelu(up x)) with the exact gelu; the head has a weight of its own. The mixer is attention, or cat,
/// whose filters run over the projections before they are rotated. Parameters have the names of GPTNeoXForCausalLM;
/// model.mlp, tie_embeddings and final_norm are not asked.
std::unique_ptr<Backbone> make_gpt_neox(const ModelConfig& config, const Scope& scope);

}  // namespace margay
