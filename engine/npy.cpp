#include "engine/npy.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/mapped_file.h"
#include "engine/names.h"
#include "engine/tensor_bytes.h"

namespace margay {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kLongestHeader = size_t{64} << 10, kAlignment = 64;

/// An element type as NumPy writes it, and what becomes of it.
struct NpyDtype {
  std::string_view descr;
  size_t bytes;
  DType dtype;
};
constexpr auto kDtypes = std::to_array<NpyDtype>({{"<f4", 4, DType::f32},
                                                  {"<f8", 8, DType::f64},
                                                  {"<i4", 4, DType::i32},
                                                  {"<i8", 8, DType::i64},
                                                  {"|b1", 1, DType::boolean},
                                                  {"|i1", 1, DType::i32},
                                                  {"|u1", 1, DType::i32},
                                                  {"<i2", 2, DType::i32},
                                                  {"<u2", 2, DType::i32},
                                                  {"<u4", 4, DType::i64}});

struct NpyHeader {
  std::string descr;
  bool fortran_order = false;
  Shape shape;
  size_t data_offset = 0;
};

/// Why a dtype cannot be read, with advice.
std::string refusal(std::string_view descr) {
  if (descr.find('O') != std::string_view::npos) return "it holds Python objects, which are never loaded";
  if (descr.starts_with('>')) return fmt::format("dtype {} is big-endian; save it as little-endian", quoted(descr));
  return fmt::format("dtype {} cannot be read; save it as float32, float64, int32, int64 or bool", quoted(descr));
}

/// Reads the header's Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }, keys in any
/// order. Every step returns false where the text does not go on as it must.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : rest_(text) {}

  /// The fault that was found; empty if there is none.
  std::string parse(NpyHeader& header) {
    const bool ok = take('{') && parse_items(header) && take('}');
    if (!fault_.empty()) return fault_;
    skip_space();
    return ok && rest_.empty() ? "" : "its header is not the dictionary that NumPy writes";
  }

 private:
  bool fail(std::string fault) {
    fault_ = std::move(fault);
    return false;
  }
  void skip_space() {
    while (!rest_.empty() && (rest_.front() == ' ' || rest_.front() == '\n')) rest_.remove_prefix(1);
  }
  bool next_is(char c) {
    skip_space();
    return !rest_.empty() && rest_.front() == c;
  }
  bool take(char c) {
    if (!next_is(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  bool take_word(std::string_view word) {
    skip_space();
    if (!rest_.starts_with(word)) return false;
    rest_.remove_prefix(word.size());
    return true;
  }
  bool take_string(std::string_view& text) {
    const char quote = next_is('"') ? '"' : '\'';
    if (!take(quote)) return false;
    const size_t end = rest_.find(quote);
    if (end == std::string_view::npos) return false;
    text = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return text.find_first_of("\\\n") == std::string_view::npos;
  }

  bool parse_items(NpyHeader& header) {
    bool descr = false, order = false, shape = false;
    for (bool more = true; more && !next_is('}'); more = take(',')) {
      std::string_view key;
      if (!take_string(key) || !take(':')) return false;
      bool& seen = key == "descr" ? descr : key == "fortran_order" ? order : shape;
      if (key != "descr" && key != "fortran_order" && key != "shape")
        return fail(fmt::format("its header has an unknown key {}", quoted(key)));
      if (std::exchange(seen, true)) return fail(fmt::format("its header has {} twice", quoted(key)));
      const bool ok = key == "descr"           ? parse_descr(header)
                      : key == "fortran_order" ? parse_order(header)
                                               : parse_shape(header);
      if (!ok) return false;
    }
    return (descr && order && shape) || fail("its header lacks one of descr, fortran_order and shape");
  }
  bool parse_descr(NpyHeader& header) {
    if (next_is('[') || next_is('(')) return fail("it holds records, not plain numbers");
    std::string_view text;
    if (!take_string(text)) return false;
    header.descr = text;
    return true;
  }
  bool parse_order(NpyHeader& header) {
    header.fortran_order = take_word("True");
    return header.fortran_order || take_word("False");
  }
  bool parse_shape(NpyHeader& header) {
    if (!take('(')) return false;
    bool comma = true;
    while (!next_is(')')) {
      if (!comma) return false;
      if (next_is('-')) return fail("its shape has a negative size");
      int64_t size = 0;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), size);
      if (error == std::errc::result_out_of_range) return fail("its shape has a size that is too large");
      if (error != std::errc()) return false;
      rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
      if (header.shape.ndim() == kMaxDims) return fail(fmt::format("it has more than {} axes", kMaxDims));
      header.shape.push_back(size);
      comma = take(',');
    }
    // Without a comma, one number in brackets is a number in Python and no shape.
    return take(')') && (comma || header.shape.ndim() != 1);
  }

  std::string_view rest_;
  std::string fault_;
};

/// Reads the header of a whole file; returns the fault, empty if there is none.
std::string parse_header(std::span<const uint8_t> file, NpyHeader& header) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  if (!text.starts_with(kMagic)) return "it does not start as .npy files do";
  const size_t version_end = kMagic.size() + 2;
  if (text.size() < version_end) return "it ends inside its header";
  const uint8_t major = file[kMagic.size()], minor = file[kMagic.size() + 1];
  if (major < 1 || major > 3 || minor != 0) return fmt::format("format version {}.{} is unknown", major, minor);
  const size_t length_bytes = major == 1 ? 2 : 4;
  if (text.size() < version_end + length_bytes) return "it ends inside its header";
  uint32_t length = 0;
  std::memcpy(&length, text.data() + version_end, length_bytes);
  if (length > kLongestHeader) return fmt::format("its header is said to have {} bytes", length);
  header.data_offset = version_end + length_bytes + length;
  if (text.size() < header.data_offset) return "it ends inside its header";
  const std::string_view dictionary = text.substr(version_end + length_bytes, length);
  if (!dictionary.ends_with('\n')) return "its header does not end with a new line";
  return HeaderParser(dictionary).parse(header);
}

/// Bytes that an array needs; none where they cannot be counted in 64 bits, be it only but for an axis of size 0.
std::optional<size_t> data_bytes(const NpyHeader& header, const NpyDtype& dtype) {
  auto bytes = static_cast<int64_t>(dtype.bytes);
  bool empty = false;
  for (const int64_t size : header.shape) {
    empty |= size == 0;
    if (size > 0 && __builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return empty ? 0 : static_cast<size_t>(bytes);
}

template <class From, class To>
Tensor widened(std::span<const uint8_t> bytes, const Shape& shape) {
  const Tensor tensor = empty(shape, dtype_of<To>);
  To* const values = tensor.data<To>();
  for (size_t i = 0; i < bytes.size() / sizeof(From); ++i) {
    From value;
    std::memcpy(&value, bytes.data() + i * sizeof(From), sizeof(From));
    values[i] = value;
  }
  return tensor;
}

Tensor read_elements(std::span<const uint8_t> bytes, const NpyDtype& dtype, const Shape& shape,
                     const std::string& path) {
  if (dtype.descr == "|i1") return widened<int8_t, int32_t>(bytes, shape);
  if (dtype.descr == "|u1") return widened<uint8_t, int32_t>(bytes, shape);
  if (dtype.descr == "<i2") return widened<int16_t, int32_t>(bytes, shape);
  if (dtype.descr == "<u2") return widened<uint16_t, int32_t>(bytes, shape);
  if (dtype.descr == "<u4") return widened<uint32_t, int64_t>(bytes, shape);
  return tensor_from_bytes(bytes, dtype.dtype, shape, Device{}, path);
}

Shape reversed(const Shape& shape) {
  Shape result;
  for (int axis = shape.ndim() - 1; axis >= 0; --axis) result.push_back(shape[axis]);
  return result;
}

}  // namespace

Tensor load_npy(const std::string& path, Device device) {
  const MappedFile file(path);
  const auto require = [&](bool ok, std::string_view fault) {
    if (!ok) throw DataError(fmt::format("{}: not a .npy file that can be read: {}", quoted_path(path), fault));
  };
  NpyHeader header;
  const std::string fault = parse_header(file.bytes(), header);
  require(fault.empty(), fault);
  const auto dtype =
      std::find_if(kDtypes.begin(), kDtypes.end(), [&](const NpyDtype& d) { return d.descr == header.descr; });
  if (dtype == kDtypes.end()) require(false, refusal(header.descr));
  const std::optional<size_t> needed = data_bytes(header, *dtype);
  require(needed.has_value(), fmt::format("its shape {} is too large", to_string(header.shape)));
  const std::span<const uint8_t> bytes = file.bytes().subspan(header.data_offset);
  require(bytes.size() == *needed, fmt::format("its shape {} needs {} bytes of data, the file has {}",
                                               to_string(header.shape), *needed, bytes.size()));
  if (!header.fortran_order) return read_elements(bytes, *dtype, header.shape, path).to(device);
  const Shape memory = reversed(header.shape);
  const Tensor columns = read_elements(bytes, *dtype, memory, path);
  return columns.view(header.shape, reversed(contiguous_strides(memory))).contiguous().to(device);
}

std::string npy_header(DType dtype, const Shape& shape) {
  const auto known = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const NpyDtype& d) { return d.dtype == dtype; });
  if (known == kDtypes.end())
    throw OpError("npy_header", "dtype", "one that NumPy knows: convert to f32", name_of(dtype));
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", known->descr,
                                   fmt::join(shape.begin(), shape.end(), ", "), shape.ndim() == 1 ? "," : "");
  const size_t before = kMagic.size() + 4;
  header.append((kAlignment - (before + header.size() + 1) % kAlignment) % kAlignment, ' ');
  header += '\n';
  const auto length = static_cast<uint16_t>(header.size());
  std::string prefix = std::string(kMagic) + std::string("\x01\0", 2);
  prefix += static_cast<char>(length & 0xff);
  prefix += static_cast<char>(length >> 8);
  return prefix + header;
}

void save_npy(const std::string& path, const Tensor& tensor) {
  if (!tensor.defined()) throw OpError("save_npy", "tensor", "defined", "none");
  if (tensor.dtype() == DType::bf16)
    throw OpError("save_npy", "tensor", "of a dtype that NumPy knows: convert it with to(DType::f32)",
                  describe(tensor));
  const std::string header = npy_header(tensor.dtype(), tensor.shape());
  write_file_atomically(path, [&](FileWriter& writer) {
    writer.write(header);
    with_tensor_bytes(tensor, [&](std::span<const uint8_t> bytes) { writer.write(bytes.data(), bytes.size()); });
  });
}

}  // namespace margay
