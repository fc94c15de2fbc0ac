#include "models/long_conv.h"

#include <algorithm>
#include <numeric>

#include "ops/binary.h"
#include "ops/embedding.h"
#include "ops/fft_conv.h"
#include "ops/pad.h"
#include "ops/reduce.h"
#include "ops/view.h"

namespace margay {

void LongConvState::start(const Tensor& kernel) {
  kernel_ = kernel;
  std::vector<int32_t> taps(static_cast<size_t>(kernel.dim(1)));
  std::iota(taps.rbegin(), taps.rend(), 0);
  reversed_ = take_rows(transpose(kernel, 0, 1), from_values(taps, {kernel.dim(1)}, kernel.device()));
}

// Rows that no filter reaches any more are dropped when memory is full, and it then doubles what is left: the cost of
// moving is shared by many tokens.
void LongConvState::append(const Tensor& x) {
  const int64_t T = x.dim(1);
  if (!inputs_.defined() || length_ + T > inputs_.dim(1)) {
    const int64_t kept = std::min(length_, kernel_.dim(1) - 1);
    const Tensor grown = empty(x.shape().with(1, std::max<int64_t>(2 * (kept + T), 64)), x.dtype(), x.device());
    if (kept > 0) slice(grown, 1, 0, kept).copy_from(slice(inputs_, 1, length_ - kept, length_));
    inputs_ = grown;
    length_ = kept;
  }
  slice(inputs_, 1, length_, length_ + T).copy_from(x);
  length_ += T;
}

Tensor LongConvState::advance(const Tensor& x) {
  const int64_t K = kernel_.dim(1), T = x.dim(1);
  append(x);
  // One token is a sum over what came before; a stretch is convolved anew together with it.
  const int64_t reached = std::min(length_, K - 1 + T);
  const Tensor recent = slice(inputs_, 1, length_ - reached, length_);
  if (T == 1) return sum(mul(recent, slice(reversed_, 0, K - reached, K)), 1, true);
  return slice(fft_conv(recent, kernel_), 1, reached - T, reached);
}

Tensor long_conv(const Tensor& x, const std::function<Tensor(int64_t taps)>& kernel, const Tensor& D, int64_t most_taps,
                 LongConvState* state) {
  if (!state) return fft_conv(x, kernel(x.dim(1)), D);
  if (!state->started()) {
    const Tensor taps = kernel(most_taps);
    state->start(D.defined() ? add(taps, pad(unsqueeze(D, 1), 1, 0, taps.dim(1) - 1)) : taps);
  }
  return state->advance(x);
}

}  // namespace margay
