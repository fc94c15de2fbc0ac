#include "tasks/generate/stop_strings.h"

#include <algorithm>
#include <utility>

#include "engine/error.h"

namespace margay {

// Knuth, Morris & Pratt 1977: borders tell where to go on after a byte that does not fit.
StopStrings::StopStrings(const std::vector<std::string>& strings) {
  for (const std::string& text : strings) {
    if (text.empty()) throw ConfigError("a stop string must not be empty");
    Pattern pattern{text, {0}};
    for (size_t length = 2; length <= text.size(); ++length) {
      size_t border = pattern.border.back();
      while (border > 0 && text[border] != text[length - 1]) border = pattern.border[border - 1];
      pattern.border.push_back(text[border] == text[length - 1] ? border + 1 : 0);
    }
    patterns_.push_back(std::move(pattern));
  }
}

void StopStrings::advance(Pattern& pattern, char byte) {
  while (pattern.matched > 0 && pattern.text[pattern.matched] != byte)
    pattern.matched = pattern.border[pattern.matched - 1];
  if (pattern.text[pattern.matched] == byte) ++pattern.matched;
}

std::string StopStrings::push(std::string_view piece) {
  std::string free;
  for (const char byte : piece) {
    if (found_) break;
    held_ += byte;
    size_t most = 0, complete = 0;
    for (Pattern& pattern : patterns_) {
      advance(pattern, byte);
      most = std::max(most, pattern.matched);
      if (pattern.matched == pattern.text.size()) complete = std::max(complete, pattern.matched);
    }
    found_ = complete > 0;
    const size_t certain = held_.size() - (found_ ? complete : most);
    free.append(held_, 0, certain);
    held_.erase(0, certain);
  }
  return free;
}

std::string StopStrings::finish() { return found_ ? std::string() : std::exchange(held_, {}); }

}  // namespace margay
