#include "engine/tensor_bytes.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "engine/error.h"
#include "engine/file.h"

namespace margay {
namespace {

float float_of_half(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 0x1fu, fraction = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  // Infinities and NaNs keep an exponent of all ones; for others the bias goes from 15 to 127.
  const uint32_t wide = exponent == 0x1f ? 0xffu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

}  // namespace

static_assert(std::endian::native == std::endian::little, "files and memory have the same byte order");

Tensor tensor_from_bytes(std::span<const uint8_t> bytes, DType dtype, const Shape& shape, Device device,
                         std::string_view path) {
  if (dtype == DType::boolean) {
    const auto wrong = std::find_if(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte > 1; });
    if (wrong != bytes.end())
      throw DataError(fmt::format("{}: a boolean is stored as {}, not 0 or 1", quoted_path(path), *wrong));
  }
  const Tensor tensor = empty(shape, dtype, device);
  backend(device).copy_from_host(tensor.region().data, bytes.data(), bytes.size());
  return tensor;
}

Tensor tensor_from_halves(std::span<const uint8_t> bytes, const Shape& shape, Device device) {
  const Tensor tensor = empty(shape, DType::f32);
  float* const values = tensor.data<float>();
  for (size_t i = 0; i < bytes.size() / 2; ++i)
    values[i] = float_of_half(static_cast<uint16_t>(bytes[2 * i] | bytes[2 * i + 1] << 8));
  return tensor.to(device);
}

}  // namespace margay
