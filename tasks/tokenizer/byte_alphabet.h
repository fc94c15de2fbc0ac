#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace margay {

// GPT-2 writes the tokens of its vocabulary as text in which every byte is one visible character: those from '!' to
// '~', from U+00A1 to U+00AC and from U+00AE to U+00FF stand for their own number, and the 68 other bytes, in rising
// order, are U+0100 and what follows.

/// The characters of a byte, in UTF-8.
const std::string& byte_spelling(unsigned char byte);
/// The characters of some bytes.
std::string spell_bytes(std::string_view bytes);
/// The bytes that characters in UTF-8 stand for; none where one of them stands for no byte.
std::optional<std::string> bytes_of_spelling(std::string_view spelling);

}  // namespace margay
