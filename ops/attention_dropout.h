#pragma once
#include "engine/op.h"

// Dropout of attention weights: what ops on attention have in common.

namespace margay {

/// Throws OpError unless 0 <= dropout < 1, with rng i64[2] on the device of q where there is any.
inline void require_attention_dropout(const Op& op, double dropout, const Tensor& rng, const Tensor& q) {
  op.require(dropout >= 0 && dropout < 1, "dropout", dropout, "in [0, 1)");
  if (dropout > 0)
    op.require(rng.defined() && rng.dtype() == DType::i64 && rng.shape() == Shape{2} && rng.device() == q.device(),
               "rng", rng, "i64[2] on the device of q, as there is dropout");
}

namespace kernels {

/// What decides whether an attention weight is kept.
struct AttentionDropout {
  double rate = 0;  // 0: none
  const int64_t* rng = nullptr;
  uint64_t stream = 0;
};

}  // namespace kernels
}  // namespace margay
