#pragma once
#include "models/layers.h"

namespace margay {

/// The residual stream r [B, T, d], and a branch h that is not yet added to it (undefined for none).
struct ResidualStream {
  Tensor r, h;

  /// Adds the branch, and returns the norm of the sum; a LayerNorm does both in one pass over memory.
  Tensor add_and_norm(const LayerNorm& norm);
  Tensor add_and_norm(const RmsNorm& norm);
  /// r + h.
  Tensor sum() const;
};

}  // namespace margay
