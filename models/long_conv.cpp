#include "models/long_conv.h"

#include <algorithm>

#include "ops/binary.h"
#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/fft_conv.h"
#include "ops/pad.h"
#include "ops/view.h"

namespace margay {

Tensor long_conv(const Tensor& x, const std::function<Tensor(int64_t taps)>& kernel, const Tensor& D, int64_t most_taps,
                 LongConvState* state) {
  if (!state) return fft_conv(x, kernel(x.dim(1)), D);
  if (!state->kernel.defined()) {
    state->kernel = kernel(most_taps).contiguous();
    if (D.defined()) state->kernel = add(state->kernel, pad(unsqueeze(D, 1), 1, 0, state->kernel.dim(1) - 1));
  }
  const int64_t taps = state->kernel.dim(1);
  const Tensor before = state->recent, seen = before.defined() ? concat({before, x}, 1) : x;
  const int64_t length = seen.dim(1), kept = std::min(length, taps - 1);
  state->recent = slice(seen, 1, length - kept, length).clone();
  if (!before.defined()) return fft_conv(x, state->kernel);
  // One token is a sum over what came before; a stretch is convolved anew together with it.
  if (x.dim(1) == 1) return conv1d_causal(x, slice(state->kernel, 1, 0, before.dim(1) + 1), {}, before);
  return slice(fft_conv(seen, state->kernel), 1, before.dim(1), length);
}

}  // namespace margay
