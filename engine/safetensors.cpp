#include "engine/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
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

std::span<const uint8_t> SafetensorsFile::bytes(std::string_view name) const {
  const SafetensorsEntry& found = entry(name);
  return file_->bytes().subspan(static_cast<size_t>(header_->data_offset + found.begin),
                                static_cast<size_t>(found.end - found.begin));
}

Tensor SafetensorsFile::load(std::string_view name, Device device) const {
  const SafetensorsEntry& found = entry(name);
  if (!found.dtype)
    throw DataError(fmt::format("{}: tensor {} is {}; only F32, F64, F16, BF16, I32, I64 and BOOL can be read",
                                quoted_path(path()), quoted(name), found.dtype_name));
  if (found.dtype_name == "F16") return tensor_from_halves(bytes(name), found.shape, device);
  return tensor_from_bytes(bytes(name), *found.dtype, found.shape, device, path());
}

namespace {

/// Writes entries, whose data ranges are set here: wider elements first, so that every tensor is aligned to its own.
/// `write` adds the data of one of them, by its number.
void write_entries(const std::string& path, std::vector<SafetensorsEntry> entries,
                   const std::map<std::string, std::string>& metadata,
                   const std::function<void(FileWriter&, size_t)>& write) {
  std::vector<size_t> order(entries.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return safetensors_bits(entries[a].dtype_name) > safetensors_bits(entries[b].dtype_name);
  });
  std::vector<SafetensorsEntry> ordered;
  int64_t end = 0;
  for (const size_t i : order) {
    SafetensorsEntry entry = std::move(entries[i]);
    entry.begin = end;
    entry.end = end += entry.shape.numel() * safetensors_bits(entry.dtype_name) / 8;
    ordered.push_back(std::move(entry));
  }
  const std::string header = make_safetensors_header(ordered, metadata);
  write_file_atomically(path, [&](FileWriter& writer) {
    writer.write(header);
    for (const size_t i : order) write(writer, i);
  });
}

}  // namespace

void save_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsEntry> entries;
  for (const NamedTensor& named : tensors) {
    if (!named.tensor.defined())
      throw OpError("save_safetensors", "tensors", "defined", fmt::format("none for {}", quoted(named.name)));
    const DType dtype = named.tensor.dtype();
    entries.push_back({named.name, std::string(safetensors_dtype(dtype)), dtype, named.tensor.shape(), 0, 0});
  }
  write_entries(path, std::move(entries), metadata, [&](FileWriter& writer, size_t i) {
    with_tensor_bytes(tensors[i].tensor,
                      [&](std::span<const uint8_t> bytes) { writer.write(bytes.data(), bytes.size()); });
  });
}

void save_raw_safetensors(const std::string& path, std::span<const RawTensor> tensors,
                          const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsEntry> entries;
  for (const RawTensor& raw : tensors) {
    const int64_t bits = safetensors_bits(raw.dtype_name) * raw.shape.numel();
    if (safetensors_bits(raw.dtype_name) == 0 || bits != 8 * static_cast<int64_t>(raw.bytes.size()))
      throw OpError(
          "save_safetensors", "tensors", "of as many bytes as dtype and shape need",
          fmt::format("{} for {} {}{}", raw.bytes.size(), quoted(raw.name), raw.dtype_name, to_string(raw.shape)));
    entries.push_back({raw.name, raw.dtype_name, {}, raw.shape, 0, 0});
  }
  write_entries(path, std::move(entries), metadata,
                [&](FileWriter& writer, size_t i) { writer.write(tensors[i].bytes.data(), tensors[i].bytes.size()); });
}

}  // namespace margay
