#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/tokenizer/bpe.h"
#include "tasks/tokenizer/split.h"

namespace margay {

struct BpeTrainerSettings {
  int64_t vocab_size = 0;                                ///< special tokens, 256 bytes, and merges
  int64_t min_count = 2;                                 ///< a pair that occurs less often is not merged
  std::vector<std::string> special = {"<|endoftext|>"};  ///< the first ids
};

/// Learns a byte-level vocabulary from text: the pair of neighbouring tokens that occurs most often, inside the pieces
/// of GPT-2's pattern, becomes a token, again and again. Of equally frequent pairs the one with the smaller ids goes
/// first, so that the same text gives the same vocabulary whatever the order of its files.
class BpeTrainer {
 public:
  BpeTrainer();

  /// Counts the pieces of a text that comes in parts; returns how many bytes are done with (see
  /// Tokenizer::encode_part).
  size_t add_part(std::string_view text, bool last);
  /// Distinct pieces so far.
  size_t pieces() const { return counts_.size(); }

  /// The tokenizer.json of the vocabulary, which may be smaller than asked for where the text has too few pairs.
  /// `progress` is told the size so far; false from it ends the work, and an empty text is returned.
  /// Throws ConfigError for a vocabulary that cannot hold all bytes.
  std::string train(const BpeTrainerSettings& settings, const std::function<bool(int64_t tokens)>& progress) const;

 private:
  PreTokenizer pre_tokenizer_;
  TextMap<int64_t> counts_;  // of pieces
};

}  // namespace margay
