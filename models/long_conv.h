#pragma once
#include <functional>

#include "engine/tensor.h"

namespace margay {

/// What step mode keeps of a long convolution: the filters with the skip in tap 0, and the inputs they still reach.
struct LongConvState {
  Tensor kernel;  // [C, K]
  Tensor recent;  // [B, at most K - 1, C]
};

/// Long causal convolution of x [B, T, C] with a skip D [C] (undefined for none), see fft_conv. `kernel(taps)` makes
/// the first `taps` taps of the filters, [C, taps] or fewer where they have no more. `most_taps` is how many of them
/// step mode may need. With a state, x continues the inputs that the state has seen.
Tensor long_conv(const Tensor& x, const std::function<Tensor(int64_t taps)>& kernel, const Tensor& D, int64_t most_taps,
                 LongConvState* state);

}  // namespace margay
