#pragma once
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace margay {

/// Text in normalisation form C (Unicode Standard Annex 15, version of kUnicodeVersion), and where its parts come from.
struct NormalizedText {
  /// A stretch that normalisation changed: where it ends in the new and in the old text.
  struct Change {
    size_t begin, end;  ///< in `text`
    size_t source_end;
  };

  std::string text;
  std::vector<Change> changes;  ///< in order

  /// The place in the old text of a place in the new; npos inside a changed stretch.
  size_t source_of(size_t place) const;
};

/// Normalises valid UTF-8. Linear time but for the sorting of each character's combining marks.
NormalizedText nfc(std::string_view text);

/// The last place in valid UTF-8 before which and behind which it may be normalised apart; 0 if there is none.
size_t last_nfc_border(std::string_view text);

}  // namespace margay
