#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace margay {

/// Ends a text where the first of some strings occurs in it. The text arrives in pieces that may cut a string anywhere:
/// what may still become one is held back, so results depend on the text alone, not on how it is cut.
class StopStrings {
 public:
  /// Throws ConfigError for an empty string.
  explicit StopStrings(const std::vector<std::string>& strings);

  /// Takes the next piece of the text; returns what is now known to stand before any stop string. Nothing follows once
  /// one was found: the one that is complete first, of several with the same end the longest.
  std::string push(std::string_view piece);
  bool found() const { return found_; }
  /// The text is at its end: what was held back. Nothing if a stop string was found.
  std::string finish();

 private:
  struct Pattern {
    std::string text;
    std::vector<size_t> border;  // of each beginning of the text: its longest end that is also a shorter beginning
    size_t matched = 0;          // bytes of the text that the pushed text ends with
  };
  static void advance(Pattern& pattern, char byte);

  std::vector<Pattern> patterns_;
  std::string held_;
  bool found_ = false;
};

}  // namespace margay
