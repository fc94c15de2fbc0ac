#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/safetensors.h"
#include "tests/support/temp_dir.h"

namespace margay::test {

/// A tensor of a handmade folder, its bits drawn at random (as finite numbers of every size).
struct HfStored {
  std::string name, dtype;
  Shape shape;
  std::vector<uint8_t> bytes;
};
using HfTensors = std::vector<HfStored>;

/// Random elements of a dtype of safetensors, near 1 in size.
HfStored stored(const std::string& name, const std::string& dtype, const Shape& shape);

/// The tensors of tiny models, named and shaped as in the documentation of the transformers package: width 8, two
/// layers, 11 tokens.
HfTensors neox_tensors(const std::string& dtype = "F32");
HfTensors mamba_tensors(const std::string& dtype = "F32");
HfTensors mamba2_tensors(const std::string& dtype = "F32");
/// The config.json of each.
std::string neox_json();
std::string mamba_json();
std::string mamba2_json();

/// Writes tensors as a safetensors file.
void write_tensors(const std::string& path, const HfTensors& tensors);
/// A folder inside `dir` with a config.json and model.safetensors; returns its path.
std::string make_folder(const TempDir& dir, const std::string& name, std::string_view json, const HfTensors& tensors);
/// `text` with the only occurrence of `old_part` replaced.
std::string with(std::string text, std::string_view old_part, std::string_view new_part);

}  // namespace margay::test
