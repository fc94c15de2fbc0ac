#include "models/token_embedding.h"

#include <fmt/format.h>

#include "engine/error.h"
#include "ops/binary.h"
#include "ops/embedding.h"
#include "ops/view.h"

namespace margay {

TokenEmbedding::TokenEmbedding(const ModelConfig& config, const Scope& tokens, const Scope& positions,
                               const Initializer& init)
    : tokens_(tokens.parameter("weight", {config.vocab_size, config.d_model}, init)) {
  if (config.position == "learned")
    positions_ = positions.parameter("weight", {config.max_seq_len, config.d_model}, init);
}

Tensor TokenEmbedding::operator()(const Tensor& ids, int64_t first) const {
  const Tensor h = embedding(tokens_, ids);
  if (!positions_.defined()) return h;
  const int64_t end = first + ids.dim(1);
  if (end > positions_.dim(0))
    throw ConfigError(
        fmt::format("sequences must have at most model.max_seq_len = {} tokens with learned positions, "
                    "got {}",
                    positions_.dim(0), end));
  return add(h, slice(positions_, 0, first, end));
}

}  // namespace margay
