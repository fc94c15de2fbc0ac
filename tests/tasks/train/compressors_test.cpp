#include "tasks/train/compressors.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <string>

#include "engine/error.h"
#include "engine/rng.h"

using namespace margay;

namespace {

const Compressor kCopy{"cat", {"cat"}};

TextSource text(const std::string& bytes, size_t piece = 1000) {
  return [=](const std::function<void(std::string_view)>& take) {
    for (size_t at = 0; at < bytes.size(); at += piece) take(std::string_view(bytes).substr(at, piece));
  };
}

std::string noise(size_t bytes) {
  RandomStream random(1, 1);
  std::string text(bytes, '\0');
  for (char& c : text) c = static_cast<char>(random.bits());
  return text;
}

int64_t size_of(const Compressor& compressor, const std::string& bytes) {
  return compressed_size(compressor, text(bytes), {}).alone.value();
}

}  // namespace

TEST_CASE("compressors: every byte goes in and is counted when it comes out") {
  CHECK(size_of(kCopy, "") == 0);
  CHECK(size_of(kCopy, "abc") == 3);
  const std::string much = noise(3'000'000);  // far more than pipes hold
  CHECK(size_of(kCopy, much) == 3'000'000);
  const CompressedSize both = compressed_size(kCopy, text("held out"), text(much, 1 << 20));
  CHECK(both.alone == 8);
  CHECK(both.given == 8);
  CHECK_FALSE(compressed_size(kCopy, text("held out"), {}).given);
}

TEST_CASE("compressors: those of the system find repetition, in what is given too; options of the user do not count") {
  const std::string repeated(100'000, 'a'), random = noise(20'000);
  for (const Compressor& compressor : compressors()) {
    CAPTURE(compressor.name);
    const CompressedSize size = compressed_size(compressor, text(random), text(random));
    if (!size.alone) continue;  // not installed
    CHECK(*size.alone > 20'000);
    CHECK(size_of(compressor, repeated) < 1000);
    if (compressor.name == "xz -9e") CHECK(size.given.value() < 1000);
    if (compressor.name == "xz -9e") {
      ::setenv("XZ_OPT", "--no-such-option", 1);
      CHECK(compressed_size(compressor, text(random), {}).alone == size.alone);
      ::unsetenv("XZ_OPT");
    }
  }
}

TEST_CASE("compressors: one that is missing, fails or leaves early") {
  const CompressedSize missing = compressed_size({"none", {"no-such-program-of-margay"}}, text("a"), text("b"));
  CHECK_FALSE(missing.alone);
  CHECK_FALSE(missing.given);
  CHECK_THROWS_WITH_AS(size_of({"false", {"false"}}, ""), "false failed with exit status 1", DataError);
  CHECK_THROWS_AS(size_of({"head", {"head", "-c", "10"}}, noise(3'000'000)), DataError);
  CHECK_THROWS_WITH_AS(size_of({"kill", {"sh", "-c", "kill -9 $$"}}, ""), "kill was ended by signal 9", DataError);
  const auto left = Compression::start(kCopy);  // ended by the destructor
  REQUIRE(left);
  left->feed("abc");
}
