#include "engine/safetensors.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tests/engine/safetensors_bytes.h"
#include "tests/support/compare.h"
#include "tests/support/temp_dir.h"

namespace margay::test {
namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST_CASE("safetensors: every dtype and shape comes back bit for bit") {
  const TempDir folder;
  const std::string path = folder.file("all.safetensors");
  std::vector<NamedTensor> tensors;
  for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 3}, Shape{0}, Shape{4, 0, 2}, Shape{1, 2, 1, 3, 1, 2, 1, 2}}) {
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean}) {
      const Tensor values = random_uniform(shape, tensors.size(), -100, 100).to(dtype);
      tensors.push_back({std::string(name_of(dtype)) + to_string(shape), values});
      tensors.push_back({"strided " + tensors.back().name, as_strided_copy(values)});
    }
  }
  save_safetensors(path, tensors);
  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(file.names().size() == tensors.size());
  CHECK(file.path() == path);
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    const Tensor loaded = file.load(name);
    CHECK(same_bits(loaded, tensor));
    CHECK(loaded.is_contiguous());
    const SafetensorsFile::Info info = file.info(name);
    CHECK(info.dtype == tensor.dtype());
    CHECK(info.shape == tensor.shape());
    CHECK(info.bytes == tensor.numel() * static_cast<int64_t>(size_of(tensor.dtype())));
  }
  const Tensor first = file.load(tensors[2].name);
  first.fill(0);  // a copy: the file does not change
  CHECK_FALSE(same_bits(file.load(tensors[2].name), first));
}

TEST_CASE("safetensors: names and metadata may hold any text that a file can") {
  const TempDir folder;
  const std::string path = folder.file("text.safetensors");
  const std::map<std::string, std::string> metadata = {
      {"format", "pt"}, {"", ""}, {"quo\"te\\", "l\nf \u00e9 \U0001F43E"}};
  const std::vector<NamedTensor> tensors = {{"a/b.c \"quoted\" \\ \u00fc", ones({2})}, {"...", zeros({1})}};
  save_safetensors(path, tensors, metadata);
  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(file.metadata() == metadata);
  for (const auto& [name, tensor] : tensors) CHECK(same_bits(file.load(name), tensor));
  save_safetensors(path, {});
  CHECK(SafetensorsFile::open(path).names().empty());
}

TEST_CASE("safetensors: the bytes that are written") {
  const TempDir folder;
  const std::string path = folder.file("bytes.safetensors");
  const std::vector<NamedTensor> tensors = {{"b", from_values<bool>({true, false}, {2})},
                                            {"x", from_values<float>({1}, {1, 1})},
                                            {"n", from_values<int64_t>({2}, {})}};
  save_safetensors(path, tensors, {{"k", "v"}});
  const std::string bytes = content_of(path);
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  CHECK((8 + length) % 64 == 0);
  std::string json = bytes.substr(8, length);
  json.erase(json.find_last_not_of(' ') + 1);
  // Wide elements first: every tensor is aligned.
  CHECK(json == R"({"__metadata__":{"k":"v"},"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},)"
                R"("x":{"dtype":"F32","shape":[1,1],"data_offsets":[8,12]},)"
                R"("b":{"dtype":"BOOL","shape":[2],"data_offsets":[12,14]}})");
  CHECK(bytes.substr(8 + length) == std::string("\x02\0\0\0\0\0\0\0\0\0\x80\x3f\x01\0", 14));
}

TEST_CASE("safetensors: files of others") {
  const TempDir folder;
  // White space, any order of keys and of tensors, dtypes that only others have.
  const std::string path =
      folder.write("other.safetensors",
                   safetensors_bytes("{ \"late\" : {\"data_offsets\":[4,12], \"shape\":[2], \"dtype\":\"F32\"},\n"
                                     "\"short\":{\"dtype\":\"U16\",\"shape\":[2],\"data_offsets\":[0,4]}, "
                                     "\"empty\":{\"dtype\":\"U8\",\"shape\":[0,7],\"data_offsets\":[4,4]}}  ",
                                     std::string("\0\0\0\0\0\0\x80\x3f\0\0\0\x40", 12)));
  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(file.names() == std::vector<std::string>{"short", "empty", "late"});
  CHECK(file.load("late").to_vector<float>() == std::vector<float>{1, 2});
  CHECK(file.info("short").dtype_name == "U16");
  CHECK_FALSE(file.info("short").dtype.has_value());
  CHECK(file.info("short").bytes == 4);
  CHECK(file.contains("short"));
  CHECK_FALSE(file.contains("shor"));
  CHECK(data_error([&] { file.load("short"); }).find("tensor \"short\" is U16; only F32") != std::string::npos);
  CHECK(file.bytes("late").size() == 8);
  CHECK(file.bytes("late")[7] == 0x40);
  CHECK_THROWS_AS(file.load("empty"), DataError);
  CHECK(data_error([&] { file.load("lat"); }).find("has no tensor \"lat\"; the nearest is \"late\"") !=
        std::string::npos);
  CHECK_THROWS_AS(file.info("x"), DataError);
}

TEST_CASE("safetensors: half-precision numbers become f32 without loss") {
  const TempDir folder;
  // 1, -2, 65504 (the largest), 2^-14 (the smallest normal), 2^-24 and -1023 2^-24 (subnormals), 0, -0, inf, -inf, NaN,
  // and 1/3 as it is rounded.
  const std::vector<uint16_t> halves{0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x83ff,
                                     0x0000, 0x8000, 0x7c00, 0xfc00, 0x7e01, 0x3555};
  std::string data;
  for (const uint16_t half : halves) data += {static_cast<char>(half & 0xff), static_cast<char>(half >> 8)};
  const std::string path = folder.write(
      "half.safetensors", safetensors_bytes(R"({"h":{"dtype":"F16","shape":[3,4],"data_offsets":[0,24]}})", data));
  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(file.info("h").dtype == DType::f32);
  const Tensor h = file.load("h");
  CHECK(h.shape() == Shape{3, 4});
  const auto values = h.to_vector<float>();
  const std::vector<float> expected{1,    -2,    65504,    0x1p-14f,  0x1p-24f, -1023 * 0x1p-24f,
                                    0.0f, -0.0f, INFINITY, -INFINITY, NAN,      0x1.554p-2f};
  for (size_t i = 0; i < values.size(); ++i) {
    CAPTURE(i);
    CHECK(std::signbit(values[i]) == std::signbit(expected[i]));
    CHECK((values[i] == expected[i] || (std::isnan(values[i]) && std::isnan(expected[i]))));
  }
}

TEST_CASE("safetensors: raw tensors are written as they are, the wider ones first") {
  const TempDir folder;
  const std::string path = folder.file("raw.safetensors");
  const std::vector<uint8_t> narrow{1, 2, 3}, half{4, 5, 6, 7}, wide{8, 9, 10, 11};
  const std::vector<RawTensor> tensors{{"u", "U8", {3}, narrow}, {"h", "F16", {2, 1}, half}, {"f", "F32", {}, wide}};
  save_raw_safetensors(path, tensors, {{"format", "pt"}});
  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(file.names() == std::vector<std::string>{"f", "h", "u"});
  CHECK(file.metadata().at("format") == "pt");
  for (const RawTensor& raw : tensors) {
    CHECK(file.info(raw.name).dtype_name == raw.dtype_name);
    CHECK(file.info(raw.name).shape == raw.shape);
    CHECK(std::equal(raw.bytes.begin(), raw.bytes.end(), file.bytes(raw.name).begin(), file.bytes(raw.name).end()));
  }
  CHECK_THROWS_AS(save_raw_safetensors(path, std::vector<RawTensor>{{"h", "F16", {3}, half}}), OpError);
  CHECK_THROWS_AS(save_raw_safetensors(path, std::vector<RawTensor>{{"h", "F15", {2}, half}}), OpError);
}

TEST_CASE("safetensors: what cannot be read back is not written") {
  const TempDir folder;
  const std::string path = folder.file("refused.safetensors");
  const auto refused = [&](const std::vector<NamedTensor>& tensors,
                           const std::map<std::string, std::string>& metadata = {}) {
    CHECK_THROWS_AS(save_safetensors(path, tensors, metadata), OpError);
    CHECK(content_of(path).empty());
  };
  const Tensor x = ones({1});
  refused({{"a", x}, {"a", x}});
  refused({{"a", Tensor()}});
  refused({{"__metadata__", x}});
  refused({{"", x}});
  refused({{"a\xff", x}});
  refused({{std::string("a\0b", 3), x}});
  refused({{"../a", x}});
  refused({{"a", x}}, {{"k", "\xc3"}});
  refused({{"a", x}}, {{"\xed\xa0\x80", "v"}});
}

}  // namespace margay::test
