#pragma once
#include <cstdint>
#include <span>
#include <string_view>

#include "engine/tensor.h"

namespace margay {

/// Calls use(bytes) with the elements of a tensor on any device in row-major order, little-endian.
template <class Use>
void with_tensor_bytes(const Tensor& tensor, const Use& use) {
  const Tensor packed = tensor.to(Device{}).contiguous();
  use(std::span(static_cast<const uint8_t*>(packed.region().data),
                static_cast<size_t>(packed.numel()) * size_of(packed.dtype())));
}

/// A tensor of the elements in `bytes`, which come from the file at `path` and are just as many as `shape` and `dtype`
/// need. Throws DataError for booleans that are neither 0 nor 1: C++ has no such value.
Tensor tensor_from_bytes(std::span<const uint8_t> bytes, DType dtype, const Shape& shape, Device device,
                         std::string_view path);

/// An f32 tensor of as many IEEE half-precision numbers, little-endian; all of their values are kept, and the payload
/// of a NaN.
Tensor tensor_from_halves(std::span<const uint8_t> bytes, const Shape& shape, Device device);

}  // namespace margay
