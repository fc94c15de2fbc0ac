// Damaged and lying safetensors files: each must be refused with a DataError that names the file, in one line.

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "engine/rng.h"
#include "engine/safetensors.h"
#include "tests/engine/safetensors_bytes.h"
#include "tests/support/temp_dir.h"

namespace margay::test {
namespace {

/// Opens the file and loads all that can be loaded.
void read_all(const std::string& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  for (const std::string& name : file.names()) {
    CHECK_NOTHROW(static_cast<void>(file.info(name)));
    static_cast<void>(file.load(name));
  }
}

std::string valid_file() {
  return safetensors_bytes(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                           R"("b":{"dtype":"BOOL","shape":[2,1],"data_offsets":[8,10]}})",
                           std::string("\0\0\x80\x3f\0\0\0\x40\x01\0", 10));
}

std::string length_of(uint64_t length) { return std::string(reinterpret_cast<const char*>(&length), 8); }

// A header with one tensor of these properties over four bytes of data.
std::string one_tensor(const std::string& properties) {
  return safetensors_bytes("{\"a\":" + properties + "}", "\x01\x01\x01\x01");
}

struct Case {
  std::string bytes;
  std::string part;  // of the message
};

std::vector<Case> structure_cases() {
  const std::string good = R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]})";
  std::string deep = "{\"a\":", nested;
  for (int i = 0; i < 100000; ++i) deep += '[';
  for (int i = 0; i < 100000; ++i) nested += "{\"a\":";
  return {
      {length_of(std::numeric_limits<uint64_t>::max()) + "{}", "is said to have 18446744073709551615 bytes"},
      {length_of(uint64_t{1} << 63) + "{}", "is said to have"},
      {length_of(100'000'001) + "{}", "is said to have 100000001"},
      {length_of(3) + "{}", "ends inside its header"},
      {length_of(0), "does not start with {"},
      {safetensors_bytes("[]", ""), "does not start with {"},
      {safetensors_bytes(" {}", ""), "does not start with {"},
      {safetensors_bytes("\xef\xbb\xbf{}", ""), "does not start with {"},
      {safetensors_bytes("{", ""), "not valid JSON"},
      {safetensors_bytes("{}}", ""), "not valid JSON"},
      {safetensors_bytes("{},", ""), "not valid JSON"},
      {safetensors_bytes("{/**/}", ""), "not valid JSON"},
      {safetensors_bytes("{'a':1}", ""), "not valid JSON"},
      {safetensors_bytes(std::string("{}\0", 3), ""), "holds a NUL"},
      {safetensors_bytes(std::string("{}\0{\"a\":1}", 10), ""), "holds a NUL"},
      {safetensors_bytes("{\"a\xff\":" + good + "}", "abcd"), "not valid JSON"},
      {safetensors_bytes("{\"a\xed\xa0\x80\":" + good + "}", "abcd"), "not valid JSON"},
      {safetensors_bytes(R"({"\ud800":)" + good + "}", "abcd"), "not valid JSON"},
      {safetensors_bytes(deep, "abcd"), "holds an array where it must not"},
      {safetensors_bytes(nested, "abcd"), "has an unknown key"},
      {safetensors_bytes("{}", "x"), "1 bytes at its end belong to no tensor"},
      {safetensors_bytes("{\"a\":" + good + ",\"a\":" + good + "}", "abcd"), "stands in the header twice"},
      {safetensors_bytes(R"({"__metadata__":{},"__metadata__":{}})", ""), "__metadata__ stands in the header twice"},
      {safetensors_bytes(R"({"__metadata__":{"k":"1","k":"2"}})", ""), "has a key twice"},
      {safetensors_bytes(R"({"__metadata__":{"k":1}})", ""), "holds a number"},
      {safetensors_bytes(R"({"__metadata__":{"k":null}})", ""), "holds null"},
      {safetensors_bytes(R"({"__metadata__":{"k":{}}})", ""), "holds an object"},
      {safetensors_bytes(R"({"__metadata__":[]})", ""), "holds an array"},
      {safetensors_bytes(R"({"__metadata__":"x"})", ""), "holds text"},
  };
}

std::vector<Case> tensor_cases() {
  std::string rank_1000 = "1";
  for (int i = 1; i < 1000; ++i) rank_1000 += ",1";
  return {
      {one_tensor("5"), "holds a number"},
      {one_tensor("null"), "holds null"},
      {one_tensor("true"), "holds true or false"},
      {one_tensor("\"F32\""), "holds text"},
      {one_tensor("{}"), "has not all of dtype, shape and data_offsets"},
      {one_tensor(R"({"dtype":"F32","shape":[1]})"), "has not all of"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1})"), "unknown key \"x\""},
      {one_tensor(R"({"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]})"), "has dtype twice"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]})"), "has shape twice"},
      {one_tensor(R"({"dtype":"float32","shape":[1],"data_offsets":[0,4]})"), "unknown dtype \"float32\""},
      {one_tensor(R"({"dtype":"","shape":[1],"data_offsets":[0,4]})"), "unknown dtype"},
      {one_tensor(R"({"dtype":5,"shape":[1],"data_offsets":[0,4]})"), "holds a number"},
      {one_tensor(R"({"dtype":"F32","shape":1,"data_offsets":[0,4]})"), "holds a number"},
      {one_tensor(R"({"dtype":"F32","shape":["1"],"data_offsets":[0,4]})"), "holds text"},
      {one_tensor(R"({"dtype":"F32","shape":[[1]],"data_offsets":[0,4]})"), "holds an array"},
      {one_tensor(R"({"dtype":"F32","shape":{},"data_offsets":[0,4]})"), "holds an object"},
      {one_tensor(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,4]})"), "negative number"},
      {one_tensor(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"), "not a whole one"},
      {one_tensor(R"({"dtype":"F32","shape":[1e0],"data_offsets":[0,4]})"), "not a whole one"},
      {one_tensor(R"({"dtype":"F32","shape":[9223372036854775808],"data_offsets":[0,4]})"), "too large"},
      {one_tensor(R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]})"), "not a whole one"},
      {one_tensor(R"({"dtype":"F32","shape":[)" + rank_1000 + R"(],"data_offsets":[0,4]})"), "more than 8 axes"},
      // Products that wrap: to 0 elements, to 1 element, and to 4 bytes.
      {one_tensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]})"), "too large"},
      {one_tensor(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})"), "too large"},
      {one_tensor(R"({"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4]})"), "too large"},
      {one_tensor(R"({"dtype":"F32","shape":[0,4611686018427387904,8],"data_offsets":[0,0]})"), "too large"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0]})"), "has not two data_offsets"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4,8]})"), "has not two data_offsets"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":4})"), "holds a number"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[-4,0]})"), "negative number"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,0]})"), "ends before it begins"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[4,8]})"), "beyond the end of the file"},
      {one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})"), "beyond the end of the file"},
      {one_tensor(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), "4 bytes, which do not fit F32[2]"},
      {one_tensor(R"({"dtype":"F64","shape":[1],"data_offsets":[0,4]})"), "4 bytes, which do not fit F64[1]"},
      {one_tensor(R"({"dtype":"BF16","shape":[1],"data_offsets":[0,4]})"), "do not fit BF16[1]"},
      {one_tensor(R"({"dtype":"F32","shape":[],"data_offsets":[0,2]})"), "do not fit F32[]"},
      {one_tensor(R"({"dtype":"F4","shape":[7],"data_offsets":[0,4]})"), "do not fit F4[7]"},
      {one_tensor(R"({"dtype":"BOOL","shape":[2],"data_offsets":[0,2]})"), "2 bytes at its end belong to no tensor"},
      {one_tensor(R"({"dtype":"BOOL","shape":[2],"data_offsets":[2,4]})"), "leaves a hole in the data before it"},
      {one_tensor(R"({"dtype":"BOOL","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"BOOL","shape":[3],)"
                  R"("data_offsets":[1,4]})"),
       "overlaps another tensor"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],)"
                  R"("data_offsets":[0,4]})"),
       "overlaps another tensor"},
      {one_tensor(R"({"dtype":"BOOL","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"BOOL","shape":[2],)"
                  R"("data_offsets":[2,4]})"),
       "leaves a hole"},
      {one_tensor(R"({"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[0],)"
                  R"("data_offsets":[2,2]})"),
       "overlaps another tensor"},
  };
}

std::vector<Case> name_cases() {
  std::vector<Case> cases;
  for (const auto& [name, part] :
       std::vector<std::pair<std::string, std::string>>{{R"(a\u0000b)", "control character"},
                                                        {R"(\u001b[2J)", "control character"},
                                                        {R"(a\n)", "control character"},
                                                        {"a\x7f", "control character"},
                                                        {"", "is empty"},
                                                        {"..", "leads out of its folder"},
                                                        {"../etc/passwd", "leads out of its folder"},
                                                        {"a/../../b", "leads out of its folder"},
                                                        {"a/..", "leads out of its folder"},
                                                        {"/etc/passwd", "starts with a slash"}})
    cases.push_back(
        {safetensors_bytes("{\"" + name + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", "abcd"), part});
  return cases;
}

}  // namespace

TEST_CASE("safetensors: hostile files are refused, each for its own reason") {
  const TempDir folder;
  read_all(folder.write("valid.safetensors", valid_file()));
  for (const auto& cases : {structure_cases(), tensor_cases(), name_cases()}) {
    for (const Case& hostile : cases) {
      CAPTURE(hostile.bytes.substr(std::min<size_t>(8, hostile.bytes.size()), 200));
      const std::string path = folder.write("hostile.safetensors", hostile.bytes);
      const std::string message = data_error([&] { SafetensorsFile::open(path); });
      CAPTURE(message);
      CHECK(message.find(hostile.part) != std::string::npos);
      CHECK(message.find(path) != std::string::npos);
      CHECK(message.size() < 500);
      for (const char c : message) CHECK(static_cast<unsigned char>(c) >= 0x20);
    }
  }
}

TEST_CASE("safetensors: a file cut short anywhere, or with anything after its end, is refused") {
  const TempDir folder;
  const std::string bytes = valid_file();
  for (size_t size = 0; size < bytes.size(); ++size) {
    CAPTURE(size);
    CHECK_THROWS_AS(SafetensorsFile::open(folder.write("cut.safetensors", bytes.substr(0, size))), DataError);
  }
  CHECK_THROWS_AS(SafetensorsFile::open(folder.write("long.safetensors", bytes + '\0')), DataError);
}

TEST_CASE("safetensors: a boolean that is neither 0 nor 1 is refused when it is asked for") {
  const TempDir folder;
  const std::string path = folder.write(
      "bool.safetensors", safetensors_bytes(R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", "\x01\x02"));
  const SafetensorsFile file = SafetensorsFile::open(path);
  CHECK(data_error([&] { file.load("a"); }).find("a boolean is stored as 2") != std::string::npos);
}

TEST_CASE("safetensors: a file changed at random is read or refused") {
  const TempDir folder;
  const std::string bytes = valid_file();
  RandomStream random(11, hash_name("safetensors"));
  const std::string alphabet =
      "{}[]\",:0189-.eE\\u \n\0\xff"
      "FBIabdst_";
  int refused = 0;
  constexpr int rounds = 3000;
  for (int i = 0; i < rounds; ++i) {
    std::string changed = bytes;
    const uint32_t edits = 1 + random.below(3);
    for (uint32_t k = 0; k < edits; ++k) {
      const size_t at = random.below(static_cast<uint32_t>(changed.size()));
      const char c = alphabet[random.below(static_cast<uint32_t>(alphabet.size()))];
      switch (random.below(3)) {
        case 0:
          changed[at] = c;
          break;
        case 1:
          changed.insert(at, 1, c);
          break;
        default:
          changed.erase(at, 1);
      }
    }
    const std::string path = folder.write("changed.safetensors", changed);
    refused += data_error([&] { read_all(path); }) != "nothing was thrown";
  }
  CHECK(refused > rounds / 2);
  CHECK(refused < rounds);
}

}  // namespace margay::test
