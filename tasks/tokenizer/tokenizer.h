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
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  /// The bytes of the tokens; a token may end inside a UTF-8 sequence. An id that stands for nothing gives no bytes.
  virtual std::string decode(std::span<const int32_t> tokens) const = 0;
  /// The token that ends a document, where there is one.
  virtual std::optional<int32_t> end_of_text() const = 0;

 protected:
  Tokenizer() = default;
};

/// The tokenizer of a name: "bytes" (the token of a byte is its value), or the path of a tokenizer.json.
/// Throws ConfigError for what this build does not support, DataError for a file that cannot be read or is damaged.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

}  // namespace margay
