#include "tasks/utf8.h"

#include <cstdint>
#include <cstring>

namespace margay {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

/// Bytes of the character that starts with `first`; 0 if none does.
size_t length_from(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return 2;
  if (first >= 0xE0 && first <= 0xEF) return 3;
  return first >= 0xF0 && first <= 0xF4 ? 4 : 0;
}

/// Whether `second` may follow `first`: rules out overlong forms, surrogates and what lies beyond U+10FFFF.
bool may_follow(unsigned char first, unsigned char second) {
  const unsigned char low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high;
}

/// How many of the bytes, of at most one character, may start it.
size_t starting_bytes(std::string_view bytes) {
  const auto first = static_cast<unsigned char>(bytes[0]);
  size_t good = 1;
  while (good < bytes.size()) {
    const auto byte = static_cast<unsigned char>(bytes[good]);
    if (good == 1 ? !may_follow(first, byte) : (byte & 0xC0) != 0x80) break;
    ++good;
  }
  return good;
}

}  // namespace

std::string Utf8Stream::push(unsigned char byte) {
  std::string done;
  if (!open_.empty()) {
    const auto first = static_cast<unsigned char>(open_.front());
    const bool continues = open_.size() == 1 ? may_follow(first, byte) : (byte & 0xC0) == 0x80;
    if (continues) {
      open_ += static_cast<char>(byte);
      if (open_.size() == length_from(first)) done.swap(open_);
      return done;
    }
    done = kReplacement;
    open_.clear();
  }
  const size_t length = length_from(byte);
  if (length == 0) return done.append(kReplacement);
  (length == 1 ? done : open_) += static_cast<char>(byte);
  return done;
}

std::string Utf8Stream::finish() {
  if (open_.empty()) return {};
  open_.clear();
  return std::string(kReplacement);
}

std::string valid_utf8(std::string_view text) {
  Utf8Stream stream;
  std::string valid;
  for (const char c : text) valid += stream.push(static_cast<unsigned char>(c));
  return valid + stream.finish();
}

size_t valid_utf8_prefix(std::string_view text) {
  constexpr uint64_t high_bits = 0x8080808080808080u;
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight = 0;
    if (text.size() - at >= sizeof(eight)) {
      std::memcpy(&eight, text.data() + at, sizeof(eight));
      if ((eight & high_bits) == 0) {
        at += sizeof(eight);
        continue;
      }
    }
    const size_t length = length_from(static_cast<unsigned char>(text[at]));
    if (length == 0 || length > text.size() - at || starting_bytes(text.substr(at, length)) != length) return at;
    at += length;
  }
  return at;
}

bool is_open_utf8(std::string_view bytes) {
  return !bytes.empty() && bytes.size() < length_from(static_cast<unsigned char>(bytes[0])) &&
         starting_bytes(bytes) == bytes.size();
}

char32_t next_code_point(std::string_view text, size_t& at) {
  const auto first = static_cast<unsigned char>(text[at]);
  const size_t length = length_from(first);
  char32_t code = length == 1 ? first : first & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) code = code << 6 | (static_cast<unsigned char>(text[at + i]) & 0x3Fu);
  at += length;
  return code;
}

void append_utf8(std::string& text, char32_t code) {
  const auto tail = [&](int shift) { text += static_cast<char>(0x80 | (code >> shift & 0x3F)); };
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xC0 | code >> 6);
    tail(0);
  } else if (code < 0x10000) {
    text += static_cast<char>(0xE0 | code >> 12);
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xF0 | code >> 18);
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace margay
