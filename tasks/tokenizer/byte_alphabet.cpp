#include "tasks/tokenizer/byte_alphabet.h"

#include <array>

#include "tasks/utf8.h"

namespace margay {
namespace {

constexpr char32_t kMoved = 0x100, kEnd = kMoved + 68;

struct Alphabet {
  Alphabet() {
    char32_t next = kMoved;
    for (int byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t code = visible ? static_cast<char32_t>(byte) : next++;
      append_utf8(spelling[static_cast<size_t>(byte)], code);
      byte_of[code] = byte;
    }
  }

  std::array<std::string, 256> spelling;
  std::array<int, kEnd> byte_of = filled();  // -1 where a character stands for no byte

 private:
  static std::array<int, kEnd> filled() {
    std::array<int, kEnd> none;
    none.fill(-1);
    return none;
  }
};

const Alphabet& alphabet() {
  static const Alphabet alphabet;
  return alphabet;
}

}  // namespace

const std::string& byte_spelling(unsigned char byte) { return alphabet().spelling[byte]; }

std::string spell_bytes(std::string_view bytes) {
  std::string spelling;
  for (const char c : bytes) spelling += byte_spelling(static_cast<unsigned char>(c));
  return spelling;
}

std::optional<std::string> bytes_of_spelling(std::string_view spelling) {
  std::string bytes;
  for (size_t at = 0; at < spelling.size();) {
    const char32_t code = next_code_point(spelling, at);
    const int byte = code < kEnd ? alphabet().byte_of[code] : -1;
    if (byte < 0) return std::nullopt;
    bytes += static_cast<char>(byte);
  }
  return bytes;
}

}  // namespace margay
