#include "engine/safetensors.h"

#include <doctest/doctest.h>

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
                                     "\"half\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}, "
                                     "\"empty\":{\"dtype\":\"U8\",\"shape\":[0,7],\"data_offsets\":[4,4]}}  ",
                                     std::string("\0\0\0\0\0\0\x80\x3f\0\0\0\x40", 12)));
  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(file.names() == std::vector<std::string>{"half", "empty", "late"});
  CHECK(file.load("late").to_vector<float>() == std::vector<float>{1, 2});
  CHECK(file.info("half").dtype_name == "F16");
  CHECK_FALSE(file.info("half").dtype.has_value());
  CHECK(file.info("half").bytes == 4);
  CHECK(file.contains("half"));
  CHECK_FALSE(file.contains("hal"));
  CHECK(data_error([&] { file.load("half"); }).find("tensor \"half\" is F16; only F32") != std::string::npos);
  CHECK_THROWS_AS(file.load("empty"), DataError);
  CHECK(data_error([&] { file.load("lat"); }).find("has no tensor \"lat\"; the nearest is \"late\"") !=
        std::string::npos);
  CHECK_THROWS_AS(file.info("x"), DataError);
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
