#include "tasks/utf8.h"

#include <doctest/doctest.h>

#include <string>

using namespace margay;

TEST_CASE("utf8: whole characters pass, one by one") {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x90\x88z";
  CHECK(valid_utf8(text) == text);
  Utf8Stream stream;
  std::string seen;
  for (const char c : text) {
    const std::string piece = stream.push(static_cast<unsigned char>(c));
    if (!piece.empty()) CHECK((piece[0] & 0xC0) != 0x80);  // never the middle of a character
    seen += piece;
  }
  CHECK(seen == text);
}

TEST_CASE("utf8: what is none is replaced") {
  const std::string r = "\xEF\xBF\xBD";
  CHECK(valid_utf8("\xFF") == r);
  CHECK(valid_utf8("a\x80z") == "a" + r + "z");
  CHECK(valid_utf8("\xC3") == r);                               // unfinished
  CHECK(valid_utf8("\xE2\x82z") == r + "z");                    // broken off
  CHECK(valid_utf8("\xC0\xAF") == r + r);                       // overlong
  CHECK(valid_utf8("\xE0\x80\xAF") == r + r + r);               // overlong
  CHECK(valid_utf8("\xED\xA0\x80") == r + r + r);               // surrogate
  CHECK(valid_utf8("\xF4\x90\x80\x80") == r + r + r + r);       // beyond U+10FFFF
  CHECK(valid_utf8("\xE2\xE2\x82\xAC") == r + "\xE2\x82\xAC");  // a character begins inside another
  CHECK(valid_utf8("") == "");
}

TEST_CASE("utf8: a stream ends with what is broken off") {
  Utf8Stream stream;
  CHECK(stream.push(0xE2) == "");
  CHECK(stream.finish() == "\xEF\xBF\xBD");
  CHECK(stream.finish() == "");
  CHECK(stream.push('a') == "a");
}
