#pragma once
#include "engine/tensor.h"

namespace margay {

/// x converted to `dtype`: x itself where it has that dtype, else a contiguous copy. From float to integer truncates
/// towards zero, to bool means "is not 0". The gradient of a float to float cast is converted back; casts from or to
/// integers have none.
Tensor cast(const Tensor& x, DType dtype);

}  // namespace margay
