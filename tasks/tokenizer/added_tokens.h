#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace margay {

/// A text that is a token wherever it occurs, whatever pieces and merges would make of it.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  ///< only where no word goes on before or behind it
  bool strip_left = false;   ///< takes the white space before it, too
  bool strip_right = false;
};

/// Finds added tokens in text: from left to right, the longest of those that start at a place.
class AddedTokens {
 public:
  /// A stretch of text: an added token, or what is between two of them.
  struct Part {
    std::string_view text;
    int32_t id = kNone;
    bool open = false;  ///< the text may go on behind it
  };
  static constexpr int32_t kNone = -1;

  /// Throws DataError where a text occurs twice.
  explicit AddedTokens(std::vector<AddedToken> tokens);

  /// Whether text that comes in parts is read as it is in one.
  bool takes_parts() const;
  /// The parts of valid UTF-8. If the text is `open`, more of it may follow: then they end before the first place where
  /// that might change them, and the last of them is open.
  std::vector<Part> parts(std::string_view text, bool open) const;

 private:
  /// The longest token that starts at a place; null if none does.
  const AddedToken* longest_at(std::string_view text) const;

  std::vector<AddedToken> tokens_;  // by content
  std::array<bool, 256> starts_{};  // by first byte
  size_t longest_ = 0;
};

}  // namespace margay
