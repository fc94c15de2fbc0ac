#pragma once
#include <string>
#include <string_view>

namespace margay {

/// A regular expression as tokenizer.json files have it, in Oniguruma's Ruby syntax, rewritten for PCRE2 so that it
/// matches the same in UTF-8 text. Where both agree it stays as it is; `\s` becomes Unicode's White_Space, which PCRE2
/// takes one character wider. Throws DataError naming what the two read differently, and is not used by tokenizers:
/// anchors, `\b`, `\w` in a class, nested classes, inline flags but `i`.
std::string pcre2_syntax(std::string_view pattern);

}  // namespace margay
