#pragma once
#include "models/layers.h"
#include "models/mixer.h"

namespace margay {

/// The residual stream r [B, T, d], or some rows of it [R, d], and a branch h that is not yet added to it (undefined
/// for none).
struct ResidualStream {
  Tensor r, h;

  /// Adds the branch, and returns the norm of the sum; a LayerNorm does both in one pass over memory.
  Tensor add_and_norm(const LayerNorm& norm);
  Tensor add_and_norm(const RmsNorm& norm);
  /// What a mixer makes of x, the norm of r, becomes the branch; of r only what is read is kept.
  void mix(const Mixer& mixer, const Tensor& x, const ForwardContext& context, MixerState* state);
  /// r + h.
  Tensor sum() const;
};

}  // namespace margay
