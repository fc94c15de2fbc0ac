#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tasks/task.h"

namespace margay {

class JsonObject;

// Token shards: a folder with the tokens of a text, made once and mapped by whoever trains on it.
//
//     index.json                 what follows, and the digests of all other files
//     tokenizer.json             where the tokenizer is not "bytes"
//     train-00000.bin ...        the tokens of each split, one after the other: little-endian u8, u16 or u32
//     validation-00000.bin ...
//     test-00000.bin ...

inline constexpr std::array<const char*, 3> kSplitFileNames = {"train", "validation", "test"};
inline constexpr const char* kShardIndexName = "index.json";
inline constexpr const char* kShardTokenizerName = "tokenizer.json";

struct Shard {
  int64_t tokens = 0;
  std::string sha256;
};

struct ShardSplit {
  int64_t bytes = 0;               ///< of text
  std::vector<int64_t> documents;  ///< tokens of each
  std::vector<Shard> shards;

  int64_t tokens() const;
};

struct ShardIndex {
  int64_t vocab_size = 0;
  std::optional<int32_t> end_of_text;
  std::string tokenizer_sha256;  ///< of tokenizer.json; empty for bytes
  std::string source_sha256;     ///< of the names and sizes of the files that the text comes from
  std::array<ShardSplit, 3> splits;

  /// Bytes of a token: as few as hold every id.
  int width() const;
  const ShardSplit& of(Split split) const { return splits[static_cast<size_t>(split)]; }
};

/// The name of a shard in its folder.
std::string shard_name(Split split, size_t number);

/// The index as JSON.
std::string to_json(const ShardIndex& index);
/// Reads an index, whose numbers must add up. Throws DataError naming what is wrong.
ShardIndex parse_shard_index(const JsonObject& json);
ShardIndex load_shard_index(const std::string& folder);

/// The path of a file in a folder of shards. Throws DataError if it is no regular file there: a symbolic link could
/// lead out of the folder.
std::string shard_file(const std::string& folder, const std::string& name);

}  // namespace margay
