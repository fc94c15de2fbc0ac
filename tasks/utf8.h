#pragma once
#include <string>
#include <string_view>

namespace margay {

/// Turns bytes that arrive one by one into whole UTF-8 characters. What is no UTF-8 becomes U+FFFD.
class Utf8Stream {
 public:
  /// The characters that `byte` completes: none while one is still open, more than one after broken ones.
  std::string push(unsigned char byte);
  /// The text is at its end: U+FFFD for a character that is still open.
  std::string finish();

 private:
  std::string open_;  // the first bytes of a character
};

/// The text with everything that is no UTF-8 replaced by U+FFFD; an unfinished character at the end too.
std::string valid_utf8(std::string_view text);

}  // namespace margay
