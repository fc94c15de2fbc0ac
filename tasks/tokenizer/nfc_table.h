#pragma once
#include <cstdint>
#include <span>
#include <string_view>

namespace margay {

/// A character and what it is canonically equivalent to: one character (`second` = 0) or two.
struct Decomposition {
  char32_t code, first, second = 0;
  bool composes = false;  ///< whether normalisation form C joins the two again
};

/// Characters with the same canonical combining class, which is not 0.
struct CombiningRun {
  char32_t first, last;
  uint8_t combining_class;
};

// Both tables are sorted by character; Hangul syllables are not in them.
extern const std::string_view kUnicodeVersion;
extern const std::span<const Decomposition> kNfcDecompositions;
extern const std::span<const CombiningRun> kNfcCombiningRuns;

}  // namespace margay
