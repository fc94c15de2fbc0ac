#pragma once
#include <cstddef>
#include <vector>

#include "models/backbone.h"
#include "models/residual_stream.h"

namespace margay {

/// The blocks of a backbone, layer after layer. A Block is made of (config, layer, scope), has the mixer `mixer()`, and
/// moves the stream on: block(stream, context, state of its mixer). Only the last block gets context.rows.
template <class Block>
class BlockStack {
 public:
  BlockStack(const ModelConfig& config, const Scope& scope) {
    for (int64_t i = 0; i < config.n_layers; ++i) blocks_.emplace_back(config, i, scope / i);
  }

  /// The residual stream [B, T, d] after the last block, or its rows context.rows. With a state, it is moved on by
  /// these T tokens.
  Tensor operator()(ResidualStream stream, int64_t tokens, const ForwardContext& context, ModelState* state) const {
    const ForwardContext inner{.rng = context.rng, .rows = {}};
    for (size_t i = 0; i < blocks_.size(); ++i)
      blocks_[i](stream, i + 1 < blocks_.size() ? inner : context, state ? state->layers[i].get() : nullptr);
    if (state) state->position += tokens;
    return stream.sum();
  }

  ModelState start(int64_t batch) const {
    ModelState state;
    for (const Block& block : blocks_) state.layers.push_back(block.mixer().start(batch));
    return state;
  }

 private:
  std::vector<Block> blocks_;
};

}  // namespace margay
