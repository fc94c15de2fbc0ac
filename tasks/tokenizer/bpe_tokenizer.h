#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/tokenizer/added_tokens.h"
#include "tasks/tokenizer/bpe.h"
#include "tasks/tokenizer/split.h"
#include "tasks/tokenizer/tokenizer.h"

namespace margay {

/// Byte-level byte-pair encoding, as of GPT-2, GPT-NeoX and their successors. Text goes through these stages:
///
///     added tokens that are found in text as it is
///     normalisation form C, where the tokenizer has it
///     added tokens that are found in normalised text
///     a space put before each stretch, where the tokenizer has that
///     pieces of the split pattern
///     byte-pair encoding of each piece
///
/// A byte that is no part of valid UTF-8 is a stretch of its own, with the token of that byte.
class BpeTokenizer final : public Tokenizer {
 public:
  struct Parts {
    std::string json;
    Bpe bpe;
    std::vector<std::string> token_bytes;  ///< by id; empty for ids of no token
    AddedTokens raw_added, normalized_added;
    bool normalize = false;
    bool add_prefix_space = false;
    PreTokenizer pre_tokenizer;
    std::optional<int32_t> end_of_text = {};
  };

  explicit BpeTokenizer(Parts parts) : parts_(std::move(parts)) {}

  int64_t vocab_size() const override { return static_cast<int64_t>(parts_.token_bytes.size()); }
  size_t encode_part(std::string_view text, bool last, std::vector<int32_t>& tokens) const override;
  std::string decode(std::span<const int32_t> tokens) const override;
  std::optional<int32_t> end_of_text() const override { return parts_.end_of_text; }
  const std::string& json() const override { return parts_.json; }

 private:
  struct Output {
    std::vector<int32_t>& tokens;
    Bpe::Scratch scratch = {};
  };

  // Each takes valid UTF-8, more of which may follow if it is `open`, appends the tokens that cannot change any more,
  // and returns how many bytes they stand for.
  size_t encode_text(std::string_view text, bool open, Output& out) const;
  size_t encode_unmatched(std::string_view text, bool open, Output& out) const;
  size_t encode_normalized(std::string_view text, bool open, Output& out) const;

  Parts parts_;
};

}  // namespace margay
