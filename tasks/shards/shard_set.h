#pragma once
#include <array>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/mapped_file.h"
#include "tasks/shards/index.h"
#include "tasks/tokenizer/tokenizer.h"

namespace margay {

/// The tokens of a folder of shards, mapped: only what is looked at is read.
class ShardSet {
 public:
  /// Throws DataError where a file is missing, has another size than the index says, or is no regular file.
  explicit ShardSet(std::string folder);

  const ShardIndex& index() const { return index_; }
  /// Copies tokens of a split, from place `first` on; they must be there. Thread-safe. Throws DataError for an id that
  /// the tokenizer does not have.
  void read(Split split, int64_t first, std::span<int32_t> tokens) const;
  /// The tokenizer that the shards were made with. Throws DataError where it has another digest.
  std::unique_ptr<Tokenizer> tokenizer() const;
  /// Throws DataError naming the first file that does not have the digest of the index.
  void verify() const;

 private:
  struct Mapped {
    int64_t end;  // of its tokens, in the split
    MappedFile file;
  };

  std::string folder_;
  ShardIndex index_;
  std::array<std::vector<Mapped>, 3> shards_;
};

}  // namespace margay
