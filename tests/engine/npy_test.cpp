#include "engine/npy.h"

#include <doctest/doctest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/rng.h"
#include "tests/engine/safetensors_bytes.h"
#include "tests/support/compare.h"
#include "tests/support/temp_dir.h"

namespace margay::test {
namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A .npy file of this dictionary and data, whatever they hold.
std::string npy_bytes(const std::string& dictionary, const std::string& data, int major = 1, int minor = 0) {
  std::string bytes = "\x93NUMPY";
  bytes += static_cast<char>(major);
  bytes += static_cast<char>(minor);
  const auto length = static_cast<uint32_t>(dictionary.size() + 1);
  bytes.append(reinterpret_cast<const char*>(&length), major == 1 ? 2 : 4);
  return bytes + dictionary + "\n" + data;
}

std::string dictionary(const std::string& descr, const std::string& shape, const std::string& fortran = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }";
}

template <class T>
std::string raw(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

}  // namespace

TEST_CASE("npy: every dtype and shape comes back bit for bit") {
  const TempDir folder;
  const std::string path = folder.file("x.npy");
  for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 3}, Shape{0}, Shape{4, 0, 2}, Shape{1, 2, 1, 3, 1, 2, 1, 2}}) {
    for (const DType dtype : {DType::f32, DType::f64, DType::i32, DType::i64, DType::boolean}) {
      CAPTURE(to_string(shape));
      const Tensor values = random_uniform(shape, 5, -100, 100).to(dtype);
      for (const Tensor& tensor : {values, as_strided_copy(values)}) {
        save_npy(path, tensor);
        CHECK(same_bits(load_npy(path), values));
        CHECK((content_of(path).size() - static_cast<size_t>(values.numel()) * size_of(dtype)) % 64 == 0);
      }
    }
  }
}

TEST_CASE("npy: the bytes that are written are NumPy's") {
  const TempDir folder;
  const std::string path = folder.file("x.npy");
  const auto header_of = [&](const Tensor& tensor) {
    save_npy(path, tensor);
    return content_of(path).substr(0, 128);
  };
  const auto expected = [](const std::string& text) {
    std::string bytes = std::string("\x93NUMPY\x01\0\x76\0", 10) + text;
    return bytes.append(127 - bytes.size(), ' ') + '\n';
  };
  CHECK(header_of(zeros({2, 3})) == expected("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
  CHECK(header_of(zeros({5}, DType::i64)) == expected("{'descr': '<i8', 'fortran_order': False, 'shape': (5,), }"));
  CHECK(header_of(zeros({}, DType::boolean)).substr(0, 128) ==
        expected("{'descr': '|b1', 'fortran_order': False, 'shape': (), }"));
  save_npy(path, from_values<int32_t>({1, -2}, {2}));
  CHECK(content_of(path).substr(128) == raw<int32_t>({1, -2}));
}

TEST_CASE("npy: all versions, spellings and orders of the header") {
  const TempDir folder;
  const std::string data = raw<float>({1, 2, 3, 4, 5, 6});
  const auto load = [&](const std::string& bytes) { return load_npy(folder.write("x.npy", bytes)); };
  const Tensor expected = from_values<float>({1, 2, 3, 4, 5, 6}, {2, 3});
  for (const int major : {1, 2, 3})
    CHECK(same_bits(load(npy_bytes(dictionary("<f4", "(2, 3)"), data, major)), expected));
  for (const char* text : {"{\"descr\": \"<f4\", \"fortran_order\": False, \"shape\": (2, 3)}",
                           "{'shape':(2,3,),'fortran_order':False,'descr':'<f4'}",
                           "  { 'fortran_order' : False ,\n'shape' : ( 2 , 3 ) , 'descr' : '<f4' , }   \n  "})
    CHECK(same_bits(load(npy_bytes(text, data)), expected));
  CHECK(same_bits(load(npy_bytes(dictionary("<f4", "(2, 3)", "True"), data)),
                  from_values<float>({1, 3, 5, 2, 4, 6}, {2, 3})));
  CHECK(
      same_bits(load(npy_bytes(dictionary("<f4", "(6,)", "True"), data)), from_values<float>({1, 2, 3, 4, 5, 6}, {6})));
  CHECK(load(npy_bytes(dictionary("<f4", "(0, 3)", "True"), "")).shape() == Shape{0, 3});
}

TEST_CASE("npy: small integers are widened") {
  const TempDir folder;
  const auto load = [&](const std::string& descr, const std::string& data) {
    return load_npy(folder.write("x.npy", npy_bytes(dictionary(descr, "(2,)"), data)));
  };
  const auto i32 = [](int32_t a, int32_t b) { return from_values<int32_t>({a, b}, {2}); };
  CHECK(same_bits(load("|i1", raw<int8_t>({-128, 127})), i32(-128, 127)));
  CHECK(same_bits(load("|u1", raw<uint8_t>({0, 255})), i32(0, 255)));
  CHECK(same_bits(load("<i2", raw<int16_t>({-32768, 5})), i32(-32768, 5)));
  CHECK(same_bits(load("<u2", raw<uint16_t>({65535, 7})), i32(65535, 7)));
  CHECK(same_bits(load("<u4", raw<uint32_t>({4294967295u, 1})), from_values<int64_t>({4294967295, 1}, {2})));
}

TEST_CASE("npy: hostile files are refused, each for its own reason") {
  const TempDir folder;
  std::string rank_1000 = "(";
  for (int i = 0; i < 1000; ++i) rank_1000 += "1, ";
  rank_1000 += ")";
  std::string long_header = npy_bytes(dictionary("<f4", "(1,)"), "abcd", 2);
  std::memset(long_header.data() + 8, 0xff, 4);
  const std::string good = dictionary("<f4", "(1,)");
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"\x93NUMPX\x01", "does not start as .npy files do"},
      {"PK\x03\x04", "does not start as .npy files do"},
      {npy_bytes(good, "abcd", 4), "format version 4.0 is unknown"},
      {npy_bytes(good, "abcd", 0), "format version 0.0 is unknown"},
      {npy_bytes(good, "abcd", 1, 1), "format version 1.1 is unknown"},
      {long_header, "said to have 4294967295 bytes"},
      {npy_bytes(dictionary("|O", "(1,)"), "abcd"), "Python objects"},
      {npy_bytes(dictionary("O", "(1,)"), "abcd"), "Python objects"},
      {npy_bytes("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }", "abcd"), "records"},
      {npy_bytes("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "abcd"), "records"},
      {npy_bytes(dictionary(">f4", "(1,)"), "abcd"), "big-endian"},
      {npy_bytes(dictionary("<f2", "(2,)"), "abcd"), "dtype \"<f2\" cannot be read; save it as float32"},
      {npy_bytes(dictionary("<c8", "(1,)"), "abcdefgh"), "cannot be read"},
      {npy_bytes(dictionary("<U1", "(1,)"), "abcd"), "cannot be read"},
      {npy_bytes(dictionary("<f4 ", "(1,)"), "abcd"), "cannot be read"},
      {npy_bytes(dictionary("", "(1,)"), "abcd"), "cannot be read"},
      {npy_bytes(dictionary("<f8", "(1,)"), "abcd"), "needs 8 bytes of data, the file has 4"},
      {npy_bytes(dictionary("<f4", "(2,)"), "abcd"), "needs 8 bytes of data, the file has 4"},
      {npy_bytes(good, "abcde"), "needs 4 bytes of data, the file has 5"},
      {npy_bytes(dictionary("<f4", "()"), ""), "needs 4 bytes"},
      {npy_bytes(dictionary("<f4", "(-1,)"), "abcd"), "negative size"},
      {npy_bytes(dictionary("<f4", rank_1000), "abcd"), "more than 8 axes"},
      {npy_bytes(dictionary("<f4", "(4294967296, 4294967296)"), "abcd"), "is too large"},
      {npy_bytes(dictionary("<f4", "(4611686018427387905,)"), "abcd"), "is too large"},
      {npy_bytes(dictionary("<f4", "(0, 4611686018427387904, 8)"), ""), "is too large"},
      {npy_bytes(dictionary("<f4", "(99999999999999999999,)"), "abcd"), "size that is too large"},
      {npy_bytes(dictionary("<f4", "(1)"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "1"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "[1]"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(1,,)"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(1 1)"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(,)"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(1.0,)"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(0x1,)"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(1L,)"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(((((((((((1,)"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "__import__('os').abort()"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(1,)", "0"), "abcd"), "not the dictionary"},
      {npy_bytes(dictionary("<f4", "(1,)", "Falsey"), "abcd"), "lacks one of"},
      {npy_bytes("{'descr': '<f4', 'shape': (1,), }", "abcd"), "lacks one of"},
      {npy_bytes("{}", "abcd"), "lacks one of"},
      {npy_bytes("", "abcd"), "not the dictionary"},
      {npy_bytes("[]", "abcd"), "not the dictionary"},
      {npy_bytes("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", "abcd"),
       "\"descr\" twice"},
      {npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", "abcd"), "unknown key \"x\""},
      {npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } + x", "abcd"), "not the dictionary"},
      {npy_bytes("{'descr': '\\x3cf4', 'fortran_order': False, 'shape': (1,), }", "abcd"), "not the dictionary"},
      {npy_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }" + std::string(1, '\0'), "abcd"),
       "not the dictionary"},
      {npy_bytes(dictionary("|b1", "(2,)"), "\x01\x02"), "a boolean is stored as 2"},
  };
  for (const auto& [bytes, part] : cases) {
    CAPTURE(bytes.substr(0, 200));
    const std::string path = folder.write("hostile.npy", bytes);
    const std::string message = data_error([&] { load_npy(path); });
    CAPTURE(message);
    CHECK(message.find(part) != std::string::npos);
    CHECK(message.find(path) != std::string::npos);
    for (const char c : message) CHECK(static_cast<unsigned char>(c) >= 0x20);
  }
}

TEST_CASE("npy: a file cut short anywhere, or with anything after its end, is refused") {
  const TempDir folder;
  const std::string path = folder.file("x.npy");
  for (const int major : {1, 2}) {
    const std::string bytes = npy_bytes(dictionary("<f4", "(2, 1)"), raw<float>({1, 2}), major);
    for (size_t size = 0; size < bytes.size(); ++size) {
      CAPTURE(size);
      CHECK_THROWS_AS(load_npy(folder.write("cut.npy", bytes.substr(0, size))), DataError);
    }
    CHECK_THROWS_AS(load_npy(folder.write("long.npy", bytes + "x")), DataError);
    CHECK_NOTHROW(load_npy(folder.write("whole.npy", bytes)));
  }
}

TEST_CASE("npy: a file changed at random is read or refused") {
  const TempDir folder;
  const std::string bytes = npy_bytes(dictionary("|u1", "(2, 2)"), "abcd");
  RandomStream random(12, hash_name("npy"));
  int refused = 0;
  constexpr int rounds = 3000;
  for (int i = 0; i < rounds; ++i) {
    std::string changed = bytes;
    const size_t at = random.below(static_cast<uint32_t>(changed.size()));
    if (random.below(2)) {
      changed[at] = static_cast<char>(random.below(256));
    } else {
      changed[at] = "{}()',:0129 \nTF<>|"[random.below(18)];
    }
    const std::string path = folder.write("changed.npy", changed);
    refused += data_error([&] { load_npy(path); }) != "nothing was thrown";
  }
  CHECK(refused > rounds / 2);
  CHECK(refused < rounds);
}

TEST_CASE("npy: NumPy does not know bf16") {
  const TempDir folder;
  const std::string path = folder.file("x.npy");
  try {
    save_npy(path, zeros({2}, DType::bf16));
    FAIL("no error");
  } catch (const OpError& error) {
    CHECK(std::string(error.what()).find("to(DType::f32)") != std::string::npos);
  }
  CHECK_THROWS_AS(save_npy(path, Tensor()), OpError);
  CHECK_FALSE(std::filesystem::exists(path));
}

}  // namespace margay::test
