#include "tasks/tokenizer/added_tokens.h"

#include <doctest/doctest.h>

#include "engine/error.h"
#include "tests/tasks/tokenizer/small_tokenizer.h"

using namespace margay;

namespace {

/// "text|[1]more|..." : what is between tokens, and the tokens by id with the text that they took.
std::string shown(const AddedTokens& added, std::string_view text, bool open = false) {
  std::string result;
  for (const AddedTokens::Part& part : added.parts(text, open)) {
    if (!result.empty()) result += '|';
    if (part.id != AddedTokens::kNone) result += '[' + std::to_string(part.id) + ']';
    result += part.text;
    if (part.open) result += "...";
  }
  return result;
}

}  // namespace

TEST_CASE("added tokens: the longest of those that start at a place, from left to right") {
  const AddedTokens added({{1, "ab"}, {2, "abcd"}, {3, "b"}, {4, "  "}, {5, "    "}, {6, ""}});
  CHECK(shown(added, "xabcabcdab") == "x|[1]ab|c|[2]abcd|[1]ab");
  CHECK(shown(added, "cbx") == "c|[3]b|x");
  CHECK(shown(added, "a       b") == "a|[5]    |[4]  | |[3]b");
  CHECK(shown(added, "") == "");
  CHECK(shown(AddedTokens({}), "text") == "text");
  CHECK_THROWS_AS(AddedTokens({{1, "ab"}, {2, "ab"}}), DataError);
}

TEST_CASE("added tokens: white space and words around them" * doctest::skip(!test::has_bpe())) {
  const AddedTokens strip({{1, "L", false, true, false}, {2, "R", false, false, true}});
  CHECK(shown(strip, "a \u3000L b R\n\t c") == "a|[1] \u3000L| b |[2]R\n\t |c");
  const AddedTokens word({{1, "AB", true}});
  CHECK(shown(word, "AB xAB ABx AB. éAB (AB)") == "[1]AB| xAB ABx |[1]AB|. éAB (|[1]AB|)");
  CHECK(shown(word, "_AB AB\u0301 AB\u200d") == "_AB AB\u0301 AB\u200d");
  CHECK(!strip.takes_parts());
  CHECK(!word.takes_parts());
}

TEST_CASE("added tokens: in open text nothing is given that more text could change") {
  const AddedTokens added({{1, "ab"}, {2, "abcd"}});
  CHECK(added.takes_parts());
  CHECK(shown(added, "xxabc", true) == "xx...");
  CHECK(shown(added, "xxabce", true) == "xx|[1]ab");
  CHECK(shown(added, "xxabcexyz", true) == "xx|[1]ab|ce...");
  CHECK(shown(added, "xé", true) == "");
  CHECK(shown(AddedTokens({}), "text", true) == "text...");
}
