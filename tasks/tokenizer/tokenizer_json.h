#pragma once
#include <memory>
#include <string>

#include "tasks/tokenizer/tokenizer.h"

namespace margay {

/// The largest tokenizer.json that is read, in bytes.
inline constexpr size_t kMostTokenizerBytes = size_t{64} << 20;

/// Makes a tokenizer of the content of a tokenizer.json (of the tokenizers package) with byte-level BPE; `path` is for
/// messages. What the file asks for and Margay does not do is refused by name: other models, normalizers but NFC,
/// pre-tokenizers but Split, Digits and ByteLevel, BPE with dropout, subword marks or byte_fallback. Three things are
/// left out, as they do not change the tokens of a text: the post-processor (the package's add_special_tokens=False),
/// truncation and padding. Throws DataError, and ConfigError in a build without PCRE2.
std::unique_ptr<Tokenizer> parse_tokenizer(std::string json, const std::string& path);

}  // namespace margay
