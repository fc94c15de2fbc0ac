#include "engine/rng.h"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <vector>

#include "tests/support/chi_square.h"

namespace margay::test {
namespace {

struct KnownAnswer {
  std::array<uint32_t, 4> counter;
  std::array<uint32_t, 2> key;
  std::array<uint32_t, 4> words;
};

// 64-bit halves from 32-bit words, low word first.
uint64_t wide(uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; }

}  // namespace

// The vectors for philox4x32-10 in the tests of the authors' Random123 library.
TEST_CASE("Philox gives the known answers") {
  const KnownAnswer answers[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
      {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
       {0xffffffff, 0xffffffff},
       {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
      {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
       {0xa4093822, 0x299f31d0},
       {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
  };
  for (const KnownAnswer& a : answers) {
    const PhiloxBlock block =
        philox(wide(a.key[0], a.key[1]), wide(a.counter[2], a.counter[3]), wide(a.counter[0], a.counter[1]));
    for (size_t i = 0; i < 4; ++i) CHECK(block.word[i] == a.words[i]);
  }
}

TEST_CASE("a stream is the blocks of its counters") {
  RandomStream stream(7, 9);
  for (uint64_t counter = 0; counter < 3; ++counter) {
    const PhiloxBlock block = philox(7, 9, counter);
    for (const uint32_t word : block.word) CHECK(stream.bits() == word);
  }
  RandomStream again(7, 9), other_seed(8, 9), other_stream(7, 10);
  const uint32_t first = again.bits();
  CHECK(first == philox(7, 9, 0).word[0]);
  CHECK(first != other_seed.bits());
  CHECK(first != other_stream.bits());
  RandomStream halves(7, 9), words(7, 9);
  const uint64_t high = words.bits();
  CHECK(halves.bits64() == (high << 32 | words.bits()));
}

TEST_CASE("hashes of names") {
  CHECK(hash_name("") == 0xcbf29ce484222325u);
  CHECK(hash_name("a") == 0xaf63dc4c8601ec8cu);
  CHECK(hash_name("foobar") == 0x85944171f73967e8u);
}

TEST_CASE("uniform numbers are uniform and below 1") {
  CHECK(uniform_from_bits(0) == 0.0f);
  CHECK(uniform_from_bits(0xffffffffu) == 1.0f - 0x1p-24f);
  constexpr int count = 200000, bins = 64;
  for (const bool wide_numbers : {false, true}) {
    RandomStream random(3, hash_name("uniform"));
    std::vector<double> histogram(bins);
    double sum = 0, correlation = 0, last = 0.5;
    for (int i = 0; i < count; ++i) {
      const double value = wide_numbers ? random.uniform64() : static_cast<double>(random.uniform());
      REQUIRE(value >= 0);
      REQUIRE(value < 1);
      ++histogram[static_cast<size_t>(value * bins)];
      sum += value;
      correlation += (value - 0.5) * (last - 0.5);
      last = value;
    }
    CHECK(fits_law(histogram, std::vector<double>(bins, 1.0 / bins)));
    CHECK(std::abs(sum / count - 0.5) < 5 * std::sqrt(1.0 / 12 / count));
    CHECK(std::abs(correlation / count) < 5.0 / 12 / std::sqrt(count));
  }
}

TEST_CASE("below is unbiased, for every n") {
  RandomStream random(4, hash_name("below"));
  for (int i = 0; i < 100; ++i) CHECK(random.below(1) == 0);
  // Two thirds of the range: without rejection, even results would be twice as likely as odd ones.
  constexpr uint32_t n = 0xaaaaaaabu;
  constexpr int count = 100000;
  std::vector<double> parity(2), face(7);
  for (int i = 0; i < count; ++i) {
    const uint32_t value = random.below(n);
    REQUIRE(value < n);
    ++parity[value % 2];
    ++face[random.below(7)];
  }
  CHECK(fits_law(parity, {0.5, 0.5}));
  CHECK(fits_law(face, std::vector<double>(7, 1.0 / 7)));
}

TEST_CASE("normal numbers have the moments of the normal distribution") {
  RandomStream random(5, hash_name("normal"));
  constexpr int count = 200000;
  double sum = 0, squares = 0, cubes = 0, fourths = 0;
  int within_one = 0;
  for (int i = 0; i < count; ++i) {
    const double value = random.normal();
    REQUIRE(std::isfinite(value));
    sum += value;
    squares += value * value;
    cubes += value * value * value;
    fourths += value * value * value * value;
    within_one += std::abs(value) < 1;
  }
  const double error = 5 / std::sqrt(count);
  CHECK(std::abs(sum / count) < error);
  CHECK(std::abs(squares / count - 1) < error * std::sqrt(2));
  CHECK(std::abs(cubes / count) < error * std::sqrt(15));
  CHECK(std::abs(fourths / count - 3) < error * std::sqrt(96));
  CHECK(std::abs(within_one / double{count} - 0.682689) < error * 0.47);
}

}  // namespace margay::test
