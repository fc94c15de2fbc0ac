#pragma once
#include <functional>
#include <string_view>
#include <vector>

#include "tasks/tokenizer/pattern.h"

namespace margay {

/// GPT-2's pattern: contractions, words, numbers and other signs, each with the space before it; runs of white space.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// What becomes of the matches of a pattern, and of the text between them.
enum class SplitBehavior : unsigned char {
  isolated,              ///< pieces of their own
  removed,               ///< matches are dropped
  merged_with_previous,  ///< a match belongs to what is before it
  merged_with_next,
  contiguous,  ///< neighbouring matches are one piece
};

struct SplitRule {
  Pattern pattern;
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  ///< what is between matches counts as match
};

/// Cuts text into the pieces that are made tokens one by one: each rule cuts the pieces of the one before.
class PreTokenizer {
 public:
  using Emit = std::function<void(std::string_view piece)>;

  explicit PreTokenizer(std::vector<SplitRule> rules) : rules_(std::move(rules)) {}

  /// Whether text that comes in parts is cut as it is in one.
  bool takes_parts() const;
  /// Calls emit with the pieces of valid UTF-8 in their order, and returns where the last one ends. If the text is
  /// `open`, more of it may follow: then only pieces that it cannot change are given.
  size_t split(std::string_view text, bool open, const Emit& emit) const { return apply(0, text, open, emit); }

 private:
  struct Piece {
    size_t begin, end;
    bool match;
  };

  size_t apply(size_t rule, std::string_view text, bool open, const Emit& emit) const;
  /// Calls piece(Piece) for matches and for what is between them; returns the end of the last one.
  template <class OnPiece>
  static size_t walk(const SplitRule& rule, std::string_view text, bool open, const OnPiece& on_piece);
  static std::vector<Piece> merged(std::vector<Piece> pieces, SplitBehavior behavior);

  std::vector<SplitRule> rules_;
};

}  // namespace margay
