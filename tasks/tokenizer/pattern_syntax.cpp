#include "tasks/tokenizer/pattern_syntax.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "engine/error.h"
#include "engine/names.h"

namespace margay {
namespace {

// White_Space of Unicode.
constexpr std::string_view kSpace = R"(\x09-\x0d\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f})"
                                    R"(\x{3000})";
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{N}\p{Pc})";
constexpr std::array<std::string_view, 7> kGroups = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"};
constexpr std::string_view kSamePunctuation = R"(\.[]{}()*+?|^$-/'"#&~<>,:;=!@%_` )";

bool is_alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

/// Copies a pattern from left to right.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        inside_class(c);
      } else {
        outside_class(c);
      }
    }
    if (in_class_) fail("a class that does not end");
    return std::move(out_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw DataError(fmt::format("the split pattern {} has {}, which is not supported", margay::quoted(pattern_), what));
  }

  void copy(size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }

  void outside_class(char c) {
    if (c == '^') fail("the anchor ^");
    if (c == '[') {
      in_class_ = true;
      copy(pattern_.substr(at_).starts_with("[^") ? 2 : 1);
      if (at_ < pattern_.size() && pattern_[at_] == ']') fail("a class that starts with ]");
      return;
    }
    if (c == '(' && pattern_.substr(at_).starts_with("(?")) {
      const std::string_view rest = pattern_.substr(at_);
      const auto group =
          std::find_if(kGroups.begin(), kGroups.end(), [&](auto name) { return rest.starts_with(name); });
      if (group == kGroups.end()) fail(margay::quoted(rest.substr(0, 4)));
      return copy(group->size());
    }
    if (c == '(' && pattern_.substr(at_).starts_with("(*")) fail("(*");
    // In Ruby's syntax {1,3}+ repeats a repetition; elsewhere it is possessive.
    if (c == '}' && pattern_.substr(at_).starts_with("}+")) fail("}+");
    copy(1);
  }

  void inside_class(char c) {
    if (c == '[') fail("a class inside of a class");
    if (c == '&' && pattern_.substr(at_).starts_with("&&")) fail("an intersection of classes");
    in_class_ = c != ']';
    copy(1);
  }

  void escape() {
    if (at_ + 1 == pattern_.size()) fail("a \\ at its end");
    const char c = pattern_[at_ + 1];
    switch (c) {
      case 's':
        return replace(in_class_ ? std::string(kSpace) : fmt::format("[{}]", kSpace));
      case 'S':
        return replace(in_class_ ? R"(\P{White_Space})" : fmt::format("[^{}]", kSpace));
      case 'w':
        return replace(in_class_ ? std::string(kWord) : fmt::format("[{}]", kWord));
      case 'W':
        if (in_class_) fail("\\W in a class");
        return replace(fmt::format("[^{}]", kWord));
      case 'd':
        return replace(R"(\p{Nd})");
      case 'D':
        return replace(R"(\P{Nd})");
      case 'p':
      case 'P':
        return property();
      case 'x':
        return pattern_.substr(at_ + 2, 1) == "{" ? braced() : copy(2);
      case 'n':
      case 'r':
      case 't':
      case 'f':
        return copy(2);
      default:
        if (is_alphanumeric(c) || kSamePunctuation.find(c) == std::string_view::npos) {
          fail(margay::quoted(pattern_.substr(at_, 2)));
        }
        copy(2);
    }
  }

  void replace(std::string_view text) {
    out_ += text;
    at_ += 2;
  }

  void property() {
    if (pattern_.substr(at_ + 2, 1) != "{") fail("\\p without {}");
    braced();
  }

  /// An escape with {...} behind its letter.
  void braced() {
    const size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) fail("a { that does not end");
    copy(end + 1 - at_);
  }

  std::string_view pattern_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

std::string pcre2_syntax(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace margay
