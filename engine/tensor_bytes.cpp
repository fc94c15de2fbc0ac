#include "engine/tensor_bytes.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "engine/error.h"
#include "engine/file.h"

namespace margay {

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

}  // namespace margay
