// GPT-NeoX's backbone: attention and MLP side by side, one matrix for queries, keys and values.

#include <cmath>

#include "tests/models/reference_model.h"

namespace margay::test {

using Rows = ReferenceModel::Rows;

// Row (h, i, c) of the fused matrix makes channel c of head h of letter i.
Rows ReferenceModel::neox_letter(const Rows& x, const std::string& attention, char letter) const {
  const Rows all = linear(x, attention + ".query_key_value");
  const size_t width = x[0].size(), heads = static_cast<size_t>(config_.n_heads), head_dim = width / heads;
  const size_t index = letter == 'q' ? 0 : letter == 'k' ? 1 : 2;
  Rows y(x.size(), std::vector<double>(width));
  for (size_t t = 0; t < x.size(); ++t)
    for (size_t h = 0; h < heads; ++h)
      for (size_t c = 0; c < head_dim; ++c) y[t][h * head_dim + c] = all[t][(h * 3 + index) * head_dim + c];
  return y;
}

Rows ReferenceModel::neox_logits(const std::vector<int32_t>& ids) const {
  Rows h = embedded(ids, "gpt_neox.embed_in.weight");
  for (int64_t i = 0; i < config_.n_layers; ++i) {
    const std::string block = "gpt_neox.layers." + std::to_string(i);
    const Rows attended =
        softmax_attention(layer_norm(h, block + ".input_layernorm"), block + ".attention", config_.mixer_of(i));
    Rows hidden = linear(layer_norm(h, block + ".post_attention_layernorm"), block + ".mlp.dense_h_to_4h");
    for (auto& row : hidden)
      for (double& v : row) v = 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
    const Rows made = linear(hidden, block + ".mlp.dense_4h_to_h");
    for (size_t t = 0; t < h.size(); ++t)
      for (size_t c = 0; c < h[t].size(); ++c) h[t][c] += attended[t][c] + made[t][c];
  }
  return head(layer_norm(h, "gpt_neox.final_layer_norm"), "embed_out.weight");
}

}  // namespace margay::test
