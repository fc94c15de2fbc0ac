#pragma once
#include <memory>
#include <span>
#include <string>

#include "tasks/task.h"
#include "tasks/tokenizer/tokenizer.h"

namespace margay {

/// The tokens of a text, in three parts for training, validation and test.
class TokenSource {
 public:
  virtual ~TokenSource() = default;
  TokenSource(const TokenSource&) = delete;
  TokenSource& operator=(const TokenSource&) = delete;

  /// Tokens of a part.
  virtual int64_t size(Split split) const = 0;
  /// Copies tokens of a part from place `first` on; they must be there. Thread-safe.
  virtual void read(Split split, int64_t first, std::span<int32_t> tokens) const = 0;
  virtual const Tokenizer& tokenizer() const = 0;

 protected:
  TokenSource() = default;
};

/// The tokens of a text file or of a folder of shards (see tasks/shards/index.h). A file is mapped if its tokens are
/// its bytes, else encoded, each part as a text of its own. Shards come with their tokenizer: `tokenizer` is then
/// "bytes", which is the default, or one with the same tokenizer.json. Throws DataError for what cannot be read,
/// ConfigError for another tokenizer.
std::unique_ptr<TokenSource> open_token_source(const std::string& path, const std::string& tokenizer);

}  // namespace margay
