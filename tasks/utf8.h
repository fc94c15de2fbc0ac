#pragma once
#include <cstddef>
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

/// The bytes of the longest start of the text that is valid UTF-8.
size_t valid_utf8_prefix(std::string_view text);
/// Whether bytes could go on to be one UTF-8 character: they are the start of one, and not all of it.
bool is_open_utf8(std::string_view bytes);

/// The character at byte `at` of valid UTF-8; moves `at` behind it.
char32_t next_code_point(std::string_view text, size_t& at);
/// Appends a character in UTF-8.
void append_utf8(std::string& text, char32_t code);

}  // namespace margay
