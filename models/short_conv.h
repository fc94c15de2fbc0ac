#pragma once
#include <string_view>

#include "models/config.h"
#include "models/parameter.h"

namespace margay {

/// The last tokens that a filter has seen: its input [B, W - 1, C], zeros before the first token.
struct ConvState {
  Tensor recent;

  /// What stands before x [B, T, C] (undefined at the start); x's own last rows are kept for the next call.
  Tensor advance(const Tensor& x, int64_t width);
};

/// One short causal filter per group of neighbouring channels of a mixer. Tap 0 weighs the current token.
struct ShortConv {
  Tensor weight;  ///< [W] shared, [H, W] per head, [d, W] depthwise
  Tensor bias;    ///< [d] or undefined

  ShortConv(const Scope& scope, const ModelConfig& config);
  /// Depthwise with a bias, both U(+-1/sqrt(width)).
  ShortConv(const Scope& scope, int64_t channels, int64_t width);
  /// x [B, T, d] filtered; `state` continues earlier tokens.
  Tensor operator()(const Tensor& x, ConvState* state) const;
  /// The filters as [groups, W].
  Tensor grouped() const;
};

}  // namespace margay
