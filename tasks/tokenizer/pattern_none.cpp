// Stands in for pattern_pcre2.cpp in a build without PCRE2.
#include "engine/error.h"
#include "tasks/tokenizer/pattern.h"

namespace margay {

struct Pattern::Code {};

Pattern::Pattern(std::shared_ptr<const Code> code) : code_(std::move(code)) {}

Pattern Pattern::expression(std::string_view) {
  throw ConfigError("this build has no PCRE2 (Debian: libpcre2-dev), without which the only tokenizer is \"bytes\"");
}

Pattern Pattern::literal(std::string_view text) { return expression(text); }

bool Pattern::looks_back() const { return true; }

Pattern::Found Pattern::find(std::string_view, size_t, bool, Match&) const { return Found::none; }

}  // namespace margay
