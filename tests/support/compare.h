#pragma once
#include <string>

#include "engine/tensor.h"

namespace margay::test {

/// A tensor of uniform values in [low, high), a pure function of its arguments.
Tensor random_uniform(const Shape& shape, uint64_t seed, double low = -1, double high = 1, DType dtype = DType::f64,
                      Device device = {});
/// The same values behind strides that are not row-major: every other element of a larger, transposed block.
Tensor as_strided_copy(const Tensor& tensor);

/// Where a and b differ by more than tolerance * (1 + |b|) (NaN = NaN, infinities equal), as text with both values;
/// empty if they agree. Shapes must be equal.
std::string difference(const Tensor& a, const Tensor& b, double tolerance);
/// As difference(), with the tolerance relative to the largest element of b.
std::string difference_relative_to_max(const Tensor& a, const Tensor& b, double tolerance);
/// Whether two tensors have the same shape, dtype and bits.
bool same_bits(const Tensor& a, const Tensor& b);

}  // namespace margay::test
