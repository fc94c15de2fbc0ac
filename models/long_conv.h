#pragma once
#include <functional>

#include "engine/tensor.h"

namespace margay {

/// What step mode keeps of a long convolution: its filters, and the inputs that they still reach.
class LongConvState {
 public:
  bool started() const { return kernel_.defined(); }
  /// Sets the filters, [C, K], the skip included in tap 0.
  void start(const Tensor& kernel);
  /// The convolution of x [B, T, C] as what follows the inputs of earlier calls.
  Tensor advance(const Tensor& x);

 private:
  void append(const Tensor& x);

  Tensor kernel_, reversed_;  // [C, K]; [K, C] with the last tap first
  Tensor inputs_;             // [B, capacity, C], of which the first length_ rows are used
  int64_t length_ = 0;
};

/// Long causal convolution of x [B, T, C] with a skip D [C] (undefined for none), see fft_conv. `kernel(taps)` makes
/// the first `taps` taps of the filters, [C, taps] or fewer where they have no more. `most_taps` is how many of them
/// step mode may need. With a state, x continues the inputs that the state has seen.
Tensor long_conv(const Tensor& x, const std::function<Tensor(int64_t taps)>& kernel, const Tensor& D, int64_t most_taps,
                 LongConvState* state);

}  // namespace margay
