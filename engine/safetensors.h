#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor.h"

namespace margay {

struct SafetensorsHeader;
struct SafetensorsEntry;
class MappedFile;

/// A safetensors file, mapped for reading: named tensors without any code in them. The header is checked in full before
/// anything is used (see safetensors_header.h); every error is a DataError that names the file.
class SafetensorsFile {
 public:
  struct Info {
    std::string dtype_name;      // as in the file, e.g. "F32"
    std::optional<DType> dtype;  // what load() makes of it; none for a dtype that it refuses, e.g. U8
    Shape shape;
    int64_t bytes = 0;
  };

  static SafetensorsFile open(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::string& path() const;
  /// In the order of their data.
  std::vector<std::string> names() const;
  bool contains(std::string_view name) const;
  /// Throws DataError, with the nearest name, for one that is not there.
  Info info(std::string_view name) const;
  /// A copy of the tensor; F16, which tensors here do not have, becomes f32, which holds all of its values. Throws
  /// DataError for other dtypes that tensors here do not have, and for booleans but 0 and 1.
  Tensor load(std::string_view name, Device device = {}) const;
  /// The tensor's elements as they are in the file, valid while it is open.
  std::span<const uint8_t> bytes(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const;

 private:
  SafetensorsFile(MappedFile file, SafetensorsHeader header);
  const SafetensorsEntry& entry(std::string_view name) const;

  std::unique_ptr<MappedFile> file_;
  std::unique_ptr<SafetensorsHeader> header_;
  std::map<std::string, const SafetensorsEntry*, std::less<>> by_name_;
};

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// A tensor as the format has it: elements in row-major order, little-endian, of a dtype that need not be one of
/// tensors here.
struct RawTensor {
  std::string name, dtype_name;
  Shape shape;
  std::span<const uint8_t> bytes;
};

/// Writes tensors of any dtype and device, replacing the file atomically (see write_file_atomically). Wider dtypes come
/// first in the data, so that every tensor is aligned to its elements; else the order is kept. Throws OpError for an
/// undefined tensor, a name given twice, or names and metadata that could not be read back.
void save_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata = {});
/// The same for tensors that need no conversion. Throws OpError also where a dtype is not one of the format, or has not
/// as many bytes as the shape needs.
void save_raw_safetensors(const std::string& path, std::span<const RawTensor> tensors,
                          const std::map<std::string, std::string>& metadata = {});

}  // namespace margay
