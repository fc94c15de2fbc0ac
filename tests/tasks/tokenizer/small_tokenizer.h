#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tasks/tokenizer/tokenizer.h"

namespace margay::test {

using Json = nlohmann::ordered_json;

/// False in a build without PCRE2, where the only tokenizer is "bytes".
bool has_bpe();

/// A tokenizer.json learned from an English text: <|endoftext|>, the bytes, and merges.
Json small_tokenizer_json();
std::unique_ptr<Tokenizer> tokenizer_of(const Json& json);
/// The message of the DataError that refuses a file; empty if it is none.
std::string refusal(const std::string& json);

/// The text of each token.
std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text);

/// Text with everything that is hard: scripts, marks, line ends, runs of spaces, added tokens, broken UTF-8.
std::string hard_text(uint64_t seed, size_t parts, bool valid_utf8 = false);

}  // namespace margay::test
