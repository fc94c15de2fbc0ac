#pragma once
#include <cstddef>
#include <memory>
#include <string_view>

namespace margay {

/// What a pre-tokenizer splits text at: a regular expression, or a literal text.
class Pattern {
 public:
  enum class Found : unsigned char {
    match,
    none,
    open,  ///< what follows the text decides
  };
  struct Match {
    size_t begin = 0, end = 0;
  };

  /// A regular expression as in tokenizer.json (see pcre2_syntax). Throws DataError for one that is wrong or not
  /// supported, ConfigError in a build without PCRE2.
  static Pattern expression(std::string_view source);
  static Pattern literal(std::string_view text);

  /// Whether a match may depend on the text before it.
  bool looks_back() const;
  /// The first match in valid UTF-8 that starts at byte `from` or later. If the text is `open`, more of it may follow,
  /// and `match` and `none` are answers that more cannot change. Throws DataError where the search takes too long.
  Found find(std::string_view text, size_t from, bool open, Match& match) const;

 private:
  struct Code;
  explicit Pattern(std::shared_ptr<const Code> code);

  std::shared_ptr<const Code> code_;
};

}  // namespace margay
