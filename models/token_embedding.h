#pragma once
#include "models/config.h"
#include "models/parameter.h"

namespace margay {

/// A vector for every token, plus one for every position where the config has learned ones.
class TokenEmbedding {
 public:
  /// Declares tokens.weight [V, d] and positions.weight [max_seq_len, d].
  TokenEmbedding(const ModelConfig& config, const Scope& tokens, const Scope& positions, const Initializer& init);
  /// ids i32 [B, T], the first of which stand at position `first` -> [B, T, d].
  /// Throws ConfigError for learned positions beyond model.max_seq_len.
  Tensor operator()(const Tensor& ids, int64_t first) const;
  const Tensor& weight() const { return tokens_; }

 private:
  Tensor tokens_, positions_;  // positions_ may be undefined
};

}  // namespace margay
