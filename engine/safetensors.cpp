#include "engine/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/mapped_file.h"
#include "engine/names.h"
#include "engine/safetensors_header.h"
#include "engine/tensor_bytes.h"

namespace margay {

SafetensorsFile::SafetensorsFile(MappedFile file, SafetensorsHeader header)
    : file_(std::make_unique<MappedFile>(std::move(file))),
      header_(std::make_unique<SafetensorsHeader>(std::move(header))) {
  for (const SafetensorsEntry& entry : header_->entries) by_name_.emplace(entry.name, &entry);
}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  MappedFile file(path);
  SafetensorsHeader header = parse_safetensors_header(file.bytes(), path);
  return SafetensorsFile(std::move(file), std::move(header));
}

const std::string& SafetensorsFile::path() const { return file_->path(); }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return header_->metadata; }
bool SafetensorsFile::contains(std::string_view name) const { return by_name_.contains(name); }

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const SafetensorsEntry& entry : header_->entries) names.push_back(entry.name);
  return names;
}

const SafetensorsEntry& SafetensorsFile::entry(std::string_view name) const {
  if (const auto found = by_name_.find(name); found != by_name_.end()) return *found->second;
  std::vector<std::string_view> names;
  for (const auto& [known, entry] : by_name_) names.push_back(known);
  const std::string_view nearest = nearest_name(name, names);
  throw DataError(fmt::format("{}: has no tensor {}{}", quoted_path(path()), quoted(name),
                              nearest.empty() ? "" : fmt::format("; the nearest is {}", quoted(nearest))));
}

SafetensorsFile::Info SafetensorsFile::info(std::string_view name) const {
  const SafetensorsEntry& found = entry(name);
  return {found.dtype_name, found.dtype, found.shape, found.end - found.begin};
}

Tensor SafetensorsFile::load(std::string_view name, Device device) const {
  const SafetensorsEntry& found = entry(name);
  if (!found.dtype)
    throw DataError(fmt::format("{}: tensor {} is {}; only F32, F64, BF16, I32, I64 and BOOL can be read",
                                quoted_path(path()), quoted(name), found.dtype_name));
  const auto bytes = file_->bytes().subspan(static_cast<size_t>(header_->data_offset + found.begin),
                                            static_cast<size_t>(found.end - found.begin));
  return tensor_from_bytes(bytes, *found.dtype, found.shape, device, path());
}

void save_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata) {
  for (const NamedTensor& named : tensors)
    if (!named.tensor.defined())
      throw OpError("save_safetensors", "tensors", "defined", fmt::format("none for {}", quoted(named.name)));
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return size_of(tensors[a].tensor.dtype()) > size_of(tensors[b].tensor.dtype());
  });
  std::vector<SafetensorsEntry> entries;
  int64_t end = 0;
  for (const size_t i : order) {
    const Tensor& tensor = tensors[i].tensor;
    const int64_t begin = end;
    end += tensor.numel() * static_cast<int64_t>(size_of(tensor.dtype()));
    entries.push_back(
        {tensors[i].name, std::string(safetensors_dtype(tensor.dtype())), tensor.dtype(), tensor.shape(), begin, end});
  }
  const std::string header = make_safetensors_header(entries, metadata);
  write_file_atomically(path, [&](FileWriter& writer) {
    writer.write(header);
    for (const size_t i : order)
      with_tensor_bytes(tensors[i].tensor,
                        [&](std::span<const uint8_t> bytes) { writer.write(bytes.data(), bytes.size()); });
  });
}

}  // namespace margay
