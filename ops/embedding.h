#pragma once
#include "engine/tensor.h"

namespace margay {

/// y[..., :] = weight[ids[...], :]. weight [V, d] float, ids [...] i32 -> y [..., d], contiguous. The gradient sums the
/// rows of each id in a fixed order and adds to what is already there (of a tied output layer). Throws OpError for an
/// id outside of [0, V), naming the first.
Tensor embedding(const Tensor& weight, const Tensor& ids);

/// y[r, :] = x[rows[r], :], or zeros where rows[r] is -1 (which then gets no gradient). x [T, d] of any dtype, rows [R]
/// i32 -> y [R, d], contiguous. Throws OpError for a row outside of [-1, T).
Tensor take_rows(const Tensor& x, const Tensor& rows);

}  // namespace margay
