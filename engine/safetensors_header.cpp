#include "engine/safetensors_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/names.h"

namespace margay {
namespace {

constexpr uint64_t kLongestHeader = 100'000'000;
constexpr size_t kLengthBytes = 8, kAlignment = 64;
constexpr std::string_view kMetadata = "__metadata__";

struct FormatDtype {
  std::string_view name;
  int64_t bits;
  std::optional<DType> dtype = {};
};
constexpr auto kDtypes = std::to_array<FormatDtype>({{"F32", 32, DType::f32},
                                                     {"F64", 64, DType::f64},
                                                     {"BF16", 16, DType::bf16},
                                                     {"I32", 32, DType::i32},
                                                     {"I64", 64, DType::i64},
                                                     {"BOOL", 8, DType::boolean},
                                                     {"F16", 16, DType::f32},
                                                     {"U8", 8},
                                                     {"I8", 8},
                                                     {"U16", 16},
                                                     {"I16", 16},
                                                     {"U32", 32},
                                                     {"U64", 64},
                                                     {"C64", 64},
                                                     {"F8_E5M2", 8},
                                                     {"F8_E4M3", 8},
                                                     {"F8_E8M0", 8},
                                                     {"F6_E2M3", 6},
                                                     {"F6_E3M2", 6},
                                                     {"F4", 4}});

const FormatDtype* find_dtype(std::string_view name) {
  const auto found = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const FormatDtype& d) { return d.name == name; });
  return found == kDtypes.end() ? nullptr : &*found;
}

/// Why a tensor must not have this name; empty if it may. Tools make file names of tensor names.
std::string_view objection_to(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name == kMetadata) return "is reserved";
  if (std::any_of(name.begin(), name.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }))
    return "holds a control character";
  if (name.front() == '/') return "starts with a slash";
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('/', begin), name.size());
    if (name.substr(begin, end - begin) == "..") return "leads out of its folder";
    begin = end + 1;
  }
  return {};
}

/// Takes the events of the JSON parser one by one and accepts only what the format allows. The nesting that it lets
/// through is at most three deep; anything deeper ends the parse at its opening bracket.
class HeaderReader {
 public:
  explicit HeaderReader(SafetensorsHeader& header) : header_(header) {}

  const std::string& error() const { return error_; }

  bool start_object(size_t) {
    if (state_ == State::start) return enter(State::top);
    if (state_ == State::top_value) return enter(in_metadata_ ? State::metadata : State::tensor);
    return unexpected("an object");
  }
  bool end_object() {
    if (state_ == State::tensor) {
      if (fields_ != (kDtype | kShape | kOffsets)) return fail("has not all of dtype, shape and data_offsets");
      header_.entries.push_back(std::move(entry_));
    }
    return enter(state_ == State::top ? State::done : State::top);
  }
  bool key(std::string& name) {
    if (state_ == State::top) return start_entry(name);
    if (state_ == State::metadata) {
      metadata_key_ = name;
      return header_.metadata.contains(name) ? fail("has a key twice") : enter(State::metadata_value);
    }
    const auto field = name == "dtype"          ? std::pair(kDtype, State::dtype)
                       : name == "shape"        ? std::pair(kShape, State::shape)
                       : name == "data_offsets" ? std::pair(kOffsets, State::offsets)
                                                : std::pair(0u, State::tensor);
    if (field.first == 0) return fail(fmt::format("has an unknown key {}", margay::quoted(name)));
    if ((fields_ & field.first) != 0) return fail(fmt::format("has {} twice", name));
    fields_ |= field.first;
    return enter(field.second);
  }
  bool string(std::string& text) {
    if (state_ == State::metadata_value) {
      header_.metadata.emplace(metadata_key_, text);
      return enter(State::metadata);
    }
    if (state_ != State::dtype) return unexpected("text");
    const FormatDtype* dtype = find_dtype(text);
    if (!dtype) return fail(fmt::format("has an unknown dtype {}", margay::quoted(text)));
    entry_.dtype_name = dtype->name;
    entry_.dtype = dtype->dtype;
    return enter(State::tensor);
  }
  bool start_array(size_t) {
    if (state_ == State::shape) return enter(State::shape_items);
    if (state_ == State::offsets) return enter(State::offset_items);
    return unexpected("an array");
  }
  bool end_array() {
    if (state_ == State::offset_items && offsets_ != 2) return fail("has not two data_offsets");
    return enter(State::tensor);
  }
  bool number_unsigned(uint64_t value) {
    if (state_ != State::shape_items && state_ != State::offset_items) return unexpected("a number");
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
      return fail("holds a number that is too large");
    const auto number = static_cast<int64_t>(value);
    if (state_ == State::shape_items) {
      if (entry_.shape.ndim() == kMaxDims) return fail(fmt::format("has more than {} axes", kMaxDims));
      entry_.shape.push_back(number);
    } else {
      if (offsets_ == 2) return fail("has not two data_offsets");
      (offsets_++ == 0 ? entry_.begin : entry_.end) = number;
    }
    return true;
  }
  bool number_integer(int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) { return unexpected("a number that is not a whole one"); }
  bool boolean(bool) { return unexpected("true or false"); }
  bool null() { return unexpected("null"); }
  bool binary(std::vector<uint8_t>&) { return unexpected("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
    error_ = fmt::format("its header is not valid JSON near byte {}", kLengthBytes + position);
    return false;
  }

 private:
  enum class State {
    start,
    top,
    top_value,
    metadata,
    metadata_value,
    tensor,
    dtype,
    shape,
    shape_items,
    offsets,
    offset_items,
    done
  };
  static constexpr unsigned kDtype = 1, kShape = 2, kOffsets = 4;

  bool enter(State state) {
    state_ = state;
    return true;
  }
  bool fail(std::string_view what) {
    error_ = in_metadata_ ? fmt::format("its {} {}", kMetadata, what)
                          : fmt::format("tensor {} {}", margay::quoted(entry_.name), what);
    return false;
  }
  bool unexpected(std::string_view what) {
    if (state_ != State::start) return fail(fmt::format("holds {} where it must not", what));
    error_ = "its header is not a JSON object";
    return false;
  }
  bool start_entry(const std::string& name) {
    in_metadata_ = name == kMetadata;
    entry_ = {.name = name, .dtype_name = {}, .dtype = {}, .shape = {}, .begin = 0, .end = 0};
    fields_ = 0;
    offsets_ = 0;
    if (!names_.insert(name).second) return fail("stands in the header twice");
    if (const std::string_view objection = objection_to(name); !in_metadata_ && !objection.empty())
      return fail(fmt::format("has a name that {}", objection));
    return enter(State::top_value);
  }

  SafetensorsHeader& header_;
  State state_ = State::start;
  SafetensorsEntry entry_;
  unsigned fields_ = 0;
  int offsets_ = 0;
  bool in_metadata_ = false;
  std::string metadata_key_, error_;
  std::unordered_set<std::string> names_;
};

/// Bits of a tensor's data; none where they cannot be counted in 64 bits, be it only but for an axis of size 0.
std::optional<int64_t> data_bits(const SafetensorsEntry& entry) {
  int64_t bits = find_dtype(entry.dtype_name)->bits;
  bool empty = false;
  for (const int64_t size : entry.shape) {
    empty |= size == 0;
    if (size > 0 && __builtin_mul_overflow(bits, size, &bits)) return std::nullopt;
  }
  return empty ? 0 : bits;
}

/// The first fault in the tensors' data ranges, which must cover `data_bytes` bytes exactly once; empty if there is
/// none.
std::string fault_in_ranges(const std::vector<SafetensorsEntry>& entries, int64_t data_bytes) {
  int64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    const auto fault = [&](std::string_view what) {
      return fmt::format("tensor {} {}", margay::quoted(entry.name), what);
    };
    if (entry.begin > entry.end) return fault("ends before it begins");
    if (entry.end > data_bytes) return fault("reaches beyond the end of the file");
    const std::optional<int64_t> bits = data_bits(entry);
    if (!bits) return fault(fmt::format("has a shape {} that is too large", to_string(entry.shape)));
    if (*bits % 8 != 0 || *bits / 8 != entry.end - entry.begin)
      return fault(fmt::format("has {} bytes, which do not fit {}{}", entry.end - entry.begin, entry.dtype_name,
                               to_string(entry.shape)));
    if (entry.begin < covered) return fault("overlaps another tensor");
    if (entry.begin > covered) return fault("leaves a hole in the data before it");
    covered = entry.end;
  }
  return covered == data_bytes ? "" : fmt::format("{} bytes at its end belong to no tensor", data_bytes - covered);
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::span<const uint8_t> file, std::string_view path) {
  const auto require = [&](bool ok, std::string_view fault) {
    if (!ok) throw DataError(fmt::format("{}: not a valid safetensors file: {}", quoted_path(path), fault));
  };
  require(file.size() >= kLengthBytes, "it is shorter than the length of its header");
  uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  require(length <= kLongestHeader, fmt::format("its header is said to have {} bytes", length));
  require(length <= file.size() - kLengthBytes, "it ends inside its header");
  const std::span<const uint8_t> json = file.subspan(kLengthBytes, static_cast<size_t>(length));
  require(!json.empty() && json.front() == '{', "its header does not start with {");
  // The JSON parser would take a NUL for the end of the text, and leave what follows unchecked.
  require(std::memchr(json.data(), 0, json.size()) == nullptr, "its header holds a NUL");
  SafetensorsHeader header;
  HeaderReader reader(header);
  const bool parsed = nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
  require(parsed, reader.error());
  header.data_offset = static_cast<int64_t>(kLengthBytes + json.size());
  std::sort(header.entries.begin(), header.entries.end(), [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  const std::string fault = fault_in_ranges(header.entries, static_cast<int64_t>(file.size()) - header.data_offset);
  require(fault.empty(), fault);
  return header;
}

std::string make_safetensors_header(std::span<const SafetensorsEntry> entries,
                                    const std::map<std::string, std::string>& metadata) {
  const auto json_text = [](const std::string& text, const char* arg) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      throw OpError("save_safetensors", arg, "UTF-8 text", margay::quoted(text));
    }
  };
  std::vector<std::string> members, pairs;
  for (const auto& [key, value] : metadata)
    pairs.push_back(fmt::format("{}:{}", json_text(key, "metadata"), json_text(value, "metadata")));
  if (!pairs.empty()) members.push_back(fmt::format("\"{}\":{{{}}}", kMetadata, fmt::join(pairs, ",")));
  std::unordered_set<std::string_view> names;
  for (const SafetensorsEntry& entry : entries) {
    if (const std::string_view objection = objection_to(entry.name); !objection.empty())
      throw OpError("save_safetensors", "tensors", "of usable names", fmt::format("one that {}", objection));
    if (!names.insert(entry.name).second)
      throw OpError("save_safetensors", "tensors", "of different names", margay::quoted(entry.name) + " twice");
    members.push_back(fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":[{},{}]}}",
                                  json_text(entry.name, "tensors"), entry.dtype_name, to_string(entry.shape),
                                  entry.begin, entry.end));
  }
  std::string json = fmt::format("{{{}}}", fmt::join(members, ","));
  json.append((kAlignment - (kLengthBytes + json.size()) % kAlignment) % kAlignment, ' ');
  const uint64_t length = json.size();
  if (length > kLongestHeader)
    throw OpError("save_safetensors", "tensors", fmt::format("described in {} bytes", kLongestHeader),
                  std::to_string(length));
  std::string text(kLengthBytes, '\0');
  std::memcpy(text.data(), &length, kLengthBytes);
  return text + json;
}

int64_t safetensors_bits(std::string_view dtype_name) {
  const FormatDtype* dtype = find_dtype(dtype_name);
  return dtype ? dtype->bits : 0;
}

std::string_view safetensors_dtype(DType dtype) {
  return std::find_if(kDtypes.begin(), kDtypes.end(), [&](const FormatDtype& d) { return d.dtype == dtype; })->name;
}

}  // namespace margay
