#include "tasks/train/sha256.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace margay;

namespace {
std::string digest(const std::string& text) { return sha256(std::vector<uint8_t>(text.begin(), text.end())); }
}  // namespace

TEST_CASE("sha256: the examples of FIPS 180") {
  CHECK(digest("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(digest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(digest(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("sha256: every length of the last block") {
  std::vector<std::string> digests;
  for (size_t length = 50; length < 140; ++length) {
    const std::string one = digest(std::string(length, 'x'));
    CHECK(one.size() == 64);
    for (const std::string& other : digests) CHECK(one != other);
    digests.push_back(one);
  }
}
