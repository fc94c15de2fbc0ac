#include "tasks/generate/stop_strings.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "engine/error.h"
#include "engine/rng.h"

using namespace margay;

namespace {

/// What is left of a text, tried byte by byte.
std::string naive(const std::string& text, const std::vector<std::string>& strings) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : strings) {
      if (end >= stop.size() && text.compare(end - stop.size(), stop.size(), stop) == 0)
        longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

std::string pushed(StopStrings& stop, const std::vector<std::string>& pieces) {
  std::string text;
  for (const std::string& piece : pieces) text += stop.push(piece);
  return text;
}

}  // namespace

TEST_CASE("stop strings: found across pieces, with nothing of them let out before") {
  StopStrings stop({"\n\n", "END"});
  CHECK(stop.push("one\n") == "one");
  CHECK(stop.push("two E") == "\ntwo ");
  CHECK(stop.push("N") == "");
  CHECK_FALSE(stop.found());
  CHECK(stop.push("Dless") == "");
  CHECK(stop.found());
  CHECK(stop.push("more") == "");
  CHECK(stop.finish() == "");
}

TEST_CASE("stop strings: what is held back comes out where it leads nowhere, or at the end") {
  StopStrings stop({"aab"});
  CHECK(pushed(stop, {"a", "a", "a"}) == "a");  // "aa" may still become "aab"
  CHECK(stop.push("c") == "aac");
  CHECK(stop.push("xaa") == "x");
  CHECK(stop.finish() == "aa");
  CHECK(stop.finish() == "");
}

TEST_CASE("stop strings: of several with the same end the longest; none; empty ones") {
  StopStrings several({"b", "ab", "xab"});
  CHECK(several.push("..ab..") == "..");
  CHECK(several.found());
  StopStrings none({});
  CHECK(none.push("any") == "any");
  CHECK(none.finish() == "");
  CHECK_THROWS_AS(StopStrings({"a", ""}), ConfigError);
}

TEST_CASE("stop strings: every cut of every text gives what the naive search gives") {
  RandomStream random(5, 0);
  const auto word = [&](uint32_t longest) {
    std::string text(1 + random.below(longest), 'a');
    for (char& c : text) c = static_cast<char>('a' + random.below(2));
    return text;
  };
  for (int trial = 0; trial < 2000; ++trial) {
    const std::vector<std::string> strings = {word(5), word(7)};
    const std::string text = word(20);
    StopStrings stop(strings);
    std::string got;
    for (size_t at = 0; at < text.size();) {
      const size_t length = 1 + random.below(3);
      got += stop.push(std::string_view(text).substr(at, length));
      CHECK(naive(text, strings).starts_with(got));
      at += length;
    }
    got += stop.finish();
    CHECK(got == naive(text, strings));
  }
}
