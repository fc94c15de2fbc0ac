#include "tasks/utf8.h"

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

}  // namespace margay
