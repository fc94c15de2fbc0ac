#include "tasks/tokenizer/nfc.h"

#include <doctest/doctest.h>

#include "engine/rng.h"
#include "tasks/utf8.h"

using namespace margay;

namespace {

std::string utf8(const std::u32string& codes) {
  std::string text;
  for (const char32_t code : codes) append_utf8(text, code);
  return text;
}

std::string normalized(const std::u32string& codes) { return nfc(utf8(codes)).text; }

/// Characters that compose, reorder and decompose, and some that do nothing.
std::string random_text(RandomStream& random) {
  constexpr char32_t kCodes[] = {'a',    'A',    'q',    ' ',    0x300,  0x301,  0x307,  0x323,  0x327,
                                 0x345,  0xC5,   0x1E9B, 0x212B, 0x344,  0x958,  0x1100, 0x1161, 0x11A8,
                                 0xAC00, 0xAC01, 0x6F22, 0xFB1D, 0xF900, 0x3099, 0x304B, 0x1F600};
  std::u32string codes;
  for (uint32_t left = 1 + random.below(12); left > 0; --left) codes += kCodes[random.below(std::size(kCodes))];
  return utf8(codes);
}

}  // namespace

TEST_CASE("nfc: characters compose as Unicode says") {
  CHECK(normalized(U"plain ASCII text") == "plain ASCII text");
  CHECK(normalized(U"e\u0301") == utf8(U"\u00e9"));
  CHECK(normalized(U"\u00e9") == utf8(U"\u00e9"));
  CHECK(normalized(U"A\u030a \u212b \u00c5") == utf8(U"\u00c5 \u00c5 \u00c5"));
  CHECK(normalized(U"q\u0307\u0323") == utf8(U"q\u0323\u0307"));  // sorted, nothing to compose
  CHECK(normalized(U"d\u0307\u0323") == utf8(U"\u1e0d\u0307"));   // the lower class composes first
  CHECK(normalized(U"\u1e9b\u0323") == utf8(U"\u1e9b\u0323"));    // the example of annex 15
  CHECK(normalized(U"a\u0300\u0300") == utf8(U"\u00e0\u0300"));   // blocked by its like
  CHECK(normalized(U"a\u0345\u0300") == utf8(U"\u00e0\u0345"));
  CHECK(normalized(U"\u0344") == utf8(U"\u0308\u0301"));  // decomposes, and may not compose again
  CHECK(normalized(U"\u0958") == utf8(U"\u0915\u093c"));
  CHECK(normalized(U"\u0301e") == utf8(U"\u0301e"));  // a mark with nothing before it
  CHECK(normalized(U"\u2126 \u212a \u037e \uf900") == utf8(U"\u03a9 K ; \u8c48"));
  CHECK(normalized(U"\u0928\u094d\u0928\u093c") == utf8(U"\u0928\u094d\u0929"));
  CHECK(normalized(U"\U0001d15e") == utf8(U"\U0001d157\U0001d165"));
}

TEST_CASE("nfc: Hangul is composed by arithmetic") {
  CHECK(normalized(U"\u1112\u1161\u11ab\u1100\u1173\u11af") == utf8(U"\ud55c\uae00"));
  CHECK(normalized(U"\uac00\u11a8") == utf8(U"\uac01"));
  CHECK(normalized(U"\uac01\u11a8") == utf8(U"\uac01\u11a8"));
  CHECK(normalized(U"\uac00\u11a7") == utf8(U"\uac00\u11a7"));
  CHECK(normalized(U"\ud7a3\u1161") == utf8(U"\ud7a3\u1161"));
}

TEST_CASE("nfc: normal text stays, and borders cut text into parts that are normalised apart") {
  RandomStream random(5, 0);
  for (int i = 0; i < 2'000; ++i) {
    const std::string text = random_text(random) + random_text(random), whole = nfc(text).text;
    CAPTURE(text);
    CHECK(nfc(whole).text == whole);
    CHECK(nfc(whole).changes.empty());
    const size_t border = last_nfc_border(text);
    CHECK(nfc(text.substr(0, border)).text + nfc(text.substr(border)).text == whole);
  }
}

TEST_CASE("nfc: places of the new text have places in the old one, but inside of changed stretches") {
  const std::string text = utf8(U"xe\u0301y\u212bz");
  const NormalizedText result = nfc(text);
  REQUIRE(result.text == utf8(U"x\u00e9y\u00c5z"));
  const size_t none = std::string::npos;
  const size_t expected[] = {0, 1, none, 4, 5, none, 8, 9};  // by byte of "xéyÅz"
  for (size_t place = 0; place < std::size(expected); ++place) CHECK(result.source_of(place) == expected[place]);
}

TEST_CASE("nfc: a million marks on one letter take no quadratic time") {
  std::string text = "a";
  for (int i = 0; i < 500'000; ++i) text += i % 2 == 0 ? "\u0301" : "\u0323";
  const std::string result = nfc(text).text;
  CHECK(result.starts_with("ạ\u0323"));
  CHECK(result.ends_with("\u0301\u0301"));
}
