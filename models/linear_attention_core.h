#pragma once
#include "models/attention_core.h"
#include "ops/linear_attention.h"

namespace margay {

/// What linear attention keeps of the tokens seen so far, however many they were.
struct LinearAttentionState {
  Tensor sums;  ///< as linear_attention_stretch has it; undefined before the first token
  int64_t position = 0;
};

/// Linear attention between projections, with the feature map of config.lincat: position, features, sums.
class LinearAttentionCore {
 public:
  /// `beta` [H], undefined for none, multiplies the queries. There is no scale 1/sqrt(dh), nor YaRN's temperature,
  /// which stands for the scale of a softmax.
  LinearAttentionCore(const ModelConfig& config, const Tensor& beta);
  /// q, k, v [B, H, T, dh], not yet rotated -> [B, T, d].
  Tensor operator()(const Qkv& qkv, LinearAttentionState* state) const;

 private:
  Rope rope_;
  Tensor beta_;
  LinearAttentionOptions options_;
};

/// linear_attention of a whole sequence, or of what continues `state`, with the heads merged: [B, T, H * dv].
Tensor linear_attention(const Qkv& qkv, const LinearAttentionOptions& options, LinearAttentionState* state);

}  // namespace margay
