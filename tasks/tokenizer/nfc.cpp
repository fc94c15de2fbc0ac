#include "tasks/tokenizer/nfc.h"

#include <algorithm>
#include <cstdint>
#include <unordered_map>

#include "tasks/tokenizer/nfc_table.h"
#include "tasks/utf8.h"

namespace margay {
namespace {

// Hangul syllables: leading consonant, vowel, trailing consonant (The Unicode Standard, section 3.12).
constexpr char32_t kSyllables = 0xAC00, kLeading = 0x1100, kVowels = 0x1161, kTrailing = 0x11A7;
constexpr char32_t kLeadingCount = 19, kVowelCount = 21, kTrailingCount = 28;
constexpr char32_t kSyllableCount = kLeadingCount * kVowelCount * kTrailingCount;

constexpr char32_t kFirstDecomposed = 0xC0;  // below, everything stands for itself and composes with nothing before

bool is_syllable(char32_t code) { return code >= kSyllables && code < kSyllables + kSyllableCount; }

/// The tables, ready to be asked.
class Tables {
 public:
  Tables() {
    for (const Decomposition& row : kNfcDecompositions) {
      if (!row.composes) continue;
      composed_[pair_of(row.first, row.second)] = row.code;
      seconds_.push_back(row.second);
    }
    std::sort(seconds_.begin(), seconds_.end());
  }

  static const Decomposition* decomposition(char32_t code) {
    const auto row = std::lower_bound(kNfcDecompositions.begin(), kNfcDecompositions.end(), code,
                                      [](const Decomposition& d, char32_t c) { return d.code < c; });
    return row != kNfcDecompositions.end() && row->code == code ? &*row : nullptr;
  }

  static uint8_t combining_class(char32_t code) {
    const auto run = std::lower_bound(kNfcCombiningRuns.begin(), kNfcCombiningRuns.end(), code,
                                      [](const CombiningRun& r, char32_t c) { return r.last < c; });
    return run != kNfcCombiningRuns.end() && run->first <= code ? run->combining_class : 0;
  }

  /// What two characters compose to; 0 = nothing.
  char32_t composed(char32_t first, char32_t second) const {
    if (first - kLeading < kLeadingCount && second - kVowels < kVowelCount) {
      return kSyllables + ((first - kLeading) * kVowelCount + (second - kVowels)) * kTrailingCount;
    }
    if (is_syllable(first) && (first - kSyllables) % kTrailingCount == 0 && second > kTrailing &&
        second < kTrailing + kTrailingCount) {
      return first + (second - kTrailing);
    }
    const auto found = composed_.find(pair_of(first, second));
    return found == composed_.end() ? 0 : found->second;
  }

  /// Whether nothing before the character changes how it is normalised, nor it what is before.
  bool starts_anew(char32_t code) const {
    if (code < kFirstDecomposed || is_syllable(code)) return true;
    if (const Decomposition* row = decomposition(code)) return starts_anew(row->first);
    const bool joins = code - kVowels < kVowelCount || code - kTrailing < kTrailingCount ||
                       std::binary_search(seconds_.begin(), seconds_.end(), code);
    return !joins && combining_class(code) == 0;
  }

 private:
  static uint64_t pair_of(char32_t first, char32_t second) { return uint64_t{first} << 32 | second; }

  std::unordered_map<uint64_t, char32_t> composed_;
  std::vector<char32_t> seconds_;  // all that compose with something before them
};

const Tables& tables() {
  static const Tables tables;
  return tables;
}

void decompose(char32_t code, std::u32string& out) {
  if (is_syllable(code)) {
    const char32_t index = code - kSyllables, trailing = index % kTrailingCount;
    out += kLeading + index / kTrailingCount / kVowelCount;
    out += kVowels + index / kTrailingCount % kVowelCount;
    if (trailing != 0) out += kTrailing + trailing;
    return;
  }
  const Decomposition* row = code < kFirstDecomposed ? nullptr : Tables::decomposition(code);
  if (!row) {
    out += code;
    return;
  }
  decompose(row->first, out);
  if (row->second != 0) decompose(row->second, out);
}

/// Sorts each run of combining marks by class, equal ones as they were.
void sort_marks(std::u32string& codes) {
  for (size_t i = 0; i < codes.size();) {
    if (Tables::combining_class(codes[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < codes.size() && Tables::combining_class(codes[end]) != 0) ++end;
    std::stable_sort(codes.begin() + static_cast<std::ptrdiff_t>(i), codes.begin() + static_cast<std::ptrdiff_t>(end),
                     [](char32_t a, char32_t b) { return Tables::combining_class(a) < Tables::combining_class(b); });
    i = end;
  }
}

/// Composes every character with the last starter before it, unless one of the same or a higher class is in between.
void compose(std::u32string& codes) {
  constexpr size_t none = static_cast<size_t>(-1);
  size_t starter = none, kept = 0;
  int last_class = 0;  // of what is kept behind the starter
  for (const char32_t code : codes) {
    const int own_class = Tables::combining_class(code);
    const bool blocked = kept > starter + 1 && last_class >= own_class;
    const char32_t both = starter != none && !blocked ? tables().composed(codes[starter], code) : 0;
    if (both != 0) {
      codes[starter] = both;
      continue;
    }
    if (own_class == 0) starter = kept;
    last_class = own_class;
    codes[kept++] = code;
  }
  codes.resize(kept);
}

std::string normalized(std::string_view text) {
  std::u32string codes;
  for (size_t at = 0; at < text.size();) decompose(next_code_point(text, at), codes);
  sort_marks(codes);
  compose(codes);
  std::string result;
  for (const char32_t code : codes) append_utf8(result, code);
  return result;
}

/// Whether the character is normalised as long as nothing follows that composes with it.
bool stays_alone(char32_t code) {
  const Decomposition* row = code < kFirstDecomposed ? nullptr : Tables::decomposition(code);
  return !row || row->composes;
}

bool is_ascii(char c) { return static_cast<unsigned char>(c) < 0x80; }

}  // namespace

size_t NormalizedText::source_of(size_t place) const {
  const auto after =
      std::partition_point(changes.begin(), changes.end(), [&](const Change& change) { return change.end <= place; });
  if (after != changes.end() && place > after->begin) return std::string::npos;
  return after == changes.begin() ? place : place - (after - 1)->end + (after - 1)->source_end;
}

NormalizedText nfc(std::string_view text) {
  NormalizedText result;
  result.text.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    while (end < text.size() && is_ascii(text[end]) && (end + 1 == text.size() || is_ascii(text[end + 1]))) ++end;
    if (end > at) {
      result.text += text.substr(at, end - at);
      at = end;
      continue;
    }
    const char32_t first = next_code_point(text, end);
    const size_t first_end = end;
    for (size_t next = end; next < text.size() && !tables().starts_anew(next_code_point(text, next));) end = next;
    const std::string_view cluster = text.substr(at, end - at);  // a character, and all that may compose with it
    const size_t begin = result.text.size();
    result.text += end == first_end && stays_alone(first) ? std::string(cluster) : normalized(cluster);
    if (std::string_view(result.text).substr(begin) != cluster) {
      result.changes.push_back({begin, result.text.size(), end});
    }
    at = end;
  }
  return result;
}

size_t last_nfc_border(std::string_view text) {
  for (size_t at = text.size(); at-- > 0;) {
    if ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) continue;  // inside a character
    size_t after = at;
    if (tables().starts_anew(next_code_point(text, after))) return at;
  }
  return 0;
}

}  // namespace margay
