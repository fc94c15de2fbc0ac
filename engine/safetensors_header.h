#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/shape.h"
#include "engine/types.h"

namespace margay {

/// What a safetensors header says of one tensor. `begin` and `end` count bytes from the start of the data.
struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;      // as in the file, e.g. "F32"
  std::optional<DType> dtype;  // what its elements are read as; none for a dtype that cannot be read, e.g. U8
  Shape shape;
  int64_t begin = 0, end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  // in the order of their data
  std::map<std::string, std::string> metadata;
  int64_t data_offset = 0;  // where the data starts in the file
};

/// Reads and checks the header of a safetensors file given whole: the length of the header, JSON that holds exactly
/// what the format allows (no key twice), known dtypes, names without control characters or ways out of a folder,
/// shapes whose sizes multiply without wrapping, and data ranges that fit their shapes and together cover the rest of
/// the file exactly once. Throws DataError naming `path`.
SafetensorsHeader parse_safetensors_header(std::span<const uint8_t> file, std::string_view path);

/// The length and JSON text that stand before the data, padded so that the data starts at a multiple of 64 bytes.
/// Throws OpError (op "save_safetensors") for names and metadata that could not be read back.
std::string make_safetensors_header(std::span<const SafetensorsEntry> entries,
                                    const std::map<std::string, std::string>& metadata);

/// Bits of an element of a dtype of the format; 0 for a name that is none.
int64_t safetensors_bits(std::string_view dtype_name);

/// The format's name for a dtype, e.g. "F32".
std::string_view safetensors_dtype(DType dtype);

}  // namespace margay
