#include "tasks/tokenizer/split.h"

#include <doctest/doctest.h>

#include "engine/error.h"
#include "tasks/tokenizer/pattern_syntax.h"
#include "tests/tasks/tokenizer/small_tokenizer.h"

using namespace margay;

namespace {

using Pieces = std::vector<std::string>;

Pieces split(const PreTokenizer& rules, std::string_view text) {
  Pieces pieces;
  CHECK(rules.split(text, false, [&](std::string_view piece) { pieces.emplace_back(piece); }) == text.size());
  return pieces;
}

Pieces split(const char* pattern, SplitBehavior behavior, std::string_view text, bool invert = false) {
  return split(PreTokenizer({{Pattern::expression(pattern), behavior, invert}}), text);
}

std::string pattern_error(std::string_view pattern) {
  try {
    Pattern::expression(pattern);
  } catch (const DataError& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST_CASE("split: GPT-2's pattern" * doctest::skip(!test::has_bpe())) {
  const PreTokenizer gpt2({{Pattern::expression(kGpt2Pattern)}});
  CHECK(split(gpt2, "I'll say: 'don't', 3 times!\n") ==
        Pieces{"I", "'ll", " say", ":", " '", "don", "'t", "',", " 3", " times", "!", "\n"});
  CHECK(split(gpt2, "a   b \n\n c") == Pieces{"a", "  ", " b", " \n\n", " c"});
  CHECK(split(gpt2, "trailing  ") == Pieces{"trailing", "  "});
  CHECK(split(gpt2, "x\u00a0y\u180ez\u0085") == Pieces{"x", "\u00a0", "y", "\u180e", "z", "\u0085"});
  CHECK(split(gpt2, "") == Pieces{});
}

TEST_CASE("split: what becomes of matches" * doctest::skip(!test::has_bpe())) {
  const auto text = "the-final--countdown";
  CHECK(split("-", SplitBehavior::isolated, text) == Pieces{"the", "-", "final", "-", "-", "countdown"});
  CHECK(split("-", SplitBehavior::removed, text) == Pieces{"the", "final", "countdown"});
  CHECK(split("-", SplitBehavior::merged_with_previous, text) == Pieces{"the-", "final-", "-", "countdown"});
  CHECK(split("-", SplitBehavior::merged_with_next, text) == Pieces{"the", "-final", "-", "-countdown"});
  CHECK(split("-", SplitBehavior::contiguous, text) == Pieces{"the", "-", "final", "--", "countdown"});
  CHECK(split("-", SplitBehavior::removed, text, true) == Pieces{"-", "-", "-"});
  CHECK(split("(?=[1-9])", SplitBehavior::isolated, "a12é3") == Pieces{"a", "1", "2é", "3"});
  const PreTokenizer two({{Pattern::expression("-")}, {Pattern::literal("n.")}});
  CHECK(split(two, "an.-in") == Pieces{"a", "n.", "-", "in"});
}

TEST_CASE("split: text that comes in parts is cut as in one" * doctest::skip(!test::has_bpe())) {
  const PreTokenizer gpt2({{Pattern::expression(kGpt2Pattern)}});
  const PreTokenizer two({{Pattern::expression(R"(\p{N}{1,3})")},
                          {Pattern::expression(R"([^\r\n\p{L}\p{N}]?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+)"),
                           SplitBehavior::removed}});
  for (const PreTokenizer* rules : {&gpt2, &two}) {
    REQUIRE(rules->takes_parts());
    for (uint64_t seed = 0; seed < 100; ++seed) {
      const std::string text = test::hard_text(seed, 30, true);
      Pieces whole = split(*rules, text), parts;
      size_t done = 0;
      for (size_t end = 0; end <= text.size(); ++end) {
        if (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) continue;
        done += rules->split(std::string_view(text).substr(done, end - done), end < text.size(),
                             [&](std::string_view piece) { parts.emplace_back(piece); });
      }
      CHECK(done == text.size());
      CHECK(parts == whole);
    }
  }
  CHECK(!PreTokenizer({{Pattern::expression("(?<=a)b")}}).takes_parts());
  CHECK(!PreTokenizer({{Pattern::expression("a"), SplitBehavior::contiguous}}).takes_parts());
}

TEST_CASE("split: patterns that PCRE2 would read otherwise are refused" * doctest::skip(!test::has_bpe())) {
  for (const char* pattern :
       {R"(^a)", R"(a\b)", R"([a[bc]])", R"([a&&b])", R"((?m)a)", R"((?<name>a))", R"(\h)", R"([\W])", R"(a{1,3}+)",
        R"((*ACCEPT))", R"(\1)", R"(a\)", R"([a)", R"(\pL)", R"([]a])", R"(\p{L)"}) {
    CAPTURE(pattern);
    CHECK(pattern_error(pattern).find("which is not supported") != std::string::npos);
  }
  CHECK(pattern_error("(a").find("is no regular expression") != std::string::npos);
  CHECK(pattern_error(R"(\p{Nonsense})").find("is no regular expression") != std::string::npos);
  CHECK(pattern_error(std::string(20'000, 'a')).find("is longer than") != std::string::npos);
  CHECK(pattern_error(R"(a\.[^\]\-]\x{e9}\x41(?:b|c)(?=d)\p{Lu}\P{Lu}$)").empty());
  CHECK(pcre2_syntax(R"([^\r\n\p{L}\p{N}]?\p{L}+|\d)") == R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{Nd})");
}

TEST_CASE("split: a pattern that takes for ever is an error" * doctest::skip(!test::has_bpe())) {
  const PreTokenizer slow({{Pattern::expression("(a|aa)+(?:b|d)")}});
  CHECK_THROWS_AS(slow.split(std::string(100, 'a'), false, [](std::string_view) {}), DataError);
}
