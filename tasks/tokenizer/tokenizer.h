#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace margay {

/// Turns text into token ids 0 ... vocab_size() - 1 and back. Text is any bytes: what is no UTF-8 comes back as it was.
/// Nothing changes after construction, so that threads may share one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  /// One more than the largest id.
  virtual int64_t vocab_size() const = 0;
  std::vector<int32_t> encode(std::string_view text) const;
  /// Encodes a text that comes in parts: appends the tokens of the start of `text` that nothing behind it can change,
  /// or all of them if it is the `last` part, and returns how many bytes they stand for. The next part must start
  /// there. Together the parts have the tokens of the whole text. 0 bytes mean that it takes a longer part to tell.
  virtual size_t encode_part(std::string_view text, bool last, std::vector<int32_t>& tokens) const = 0;
  /// The bytes of the tokens; a token may end inside a UTF-8 sequence. An id that stands for nothing gives no bytes.
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;
  /// The token that ends a document, where there is one.
  virtual std::optional<int32_t> end_of_text() const = 0;
  /// The tokenizer.json that it was made of; empty for bytes.
  virtual const std::string& json() const = 0;

 protected:
  Tokenizer() = default;
};

/// The tokenizer of a name: "bytes" (the token of a byte is its value), or the path of a tokenizer.json.
/// Throws ConfigError in a build without PCRE2, DataError for a file that cannot be read, is damaged or not supported.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

}  // namespace margay
