#pragma once
#include "engine/tensor.h"

namespace margay {

// Indices are i32 in [0, size of the axis of x); one outside of it is an OpError that names the first. x is of any
// dtype.

/// y[.., j, ..] = x[.., index[j], ..] along an axis: x [.., N, ..], index [n] -> y [.., n, ..], contiguous.
Tensor index_select(const Tensor& x, int axis, const Tensor& index);

/// y[.., j, ..] = x[.., index[.., j, ..], ..] along an axis. x [.., N, ..] and index [.., n, ..] have equally many axes
/// and broadcast against each other but for `axis`; y is contiguous, with the broadcast shape of the index.
Tensor gather(const Tensor& x, int axis, const Tensor& index);

/// A copy of x in which y[.., index[.., j, ..], ..] += source[.., j, ..] along an axis, for all j in order.
/// source and index have the same shape, equal to that of x but for `axis`; source has the dtype of x, which is not
/// bool.
Tensor scatter_add(const Tensor& x, int axis, const Tensor& index, const Tensor& source);

}  // namespace margay
