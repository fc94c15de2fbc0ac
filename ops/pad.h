#pragma once
#include "engine/tensor.h"

namespace margay {

/// x of any dtype with `before` and `after` elements of `value` (converted to x's dtype) put around an axis:
/// [.., n, ..] -> [.., before + n + after, ..], contiguous. Throws OpError for a negative count.
Tensor pad(const Tensor& x, int axis, int64_t before, int64_t after, double value = 0);

/// y[i] = x[i - by] along an axis, 0 where i - by lies outside of it: towards the end for by > 0, towards the start for
/// by < 0. Any dtype; contiguous, with the shape of x.
Tensor shift(const Tensor& x, int axis, int64_t by);

}  // namespace margay
