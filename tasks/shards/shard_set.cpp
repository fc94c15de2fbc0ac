#include "tasks/shards/shard_set.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/error.h"
#include "engine/file.h"
#include "tasks/tokenizer/tokenizer_json.h"
#include "tasks/train/sha256.h"

namespace margay {
namespace {

void check_digest(const MappedFile& file, const std::string& digest) {
  if (sha256(file.bytes()) == digest) return;
  throw DataError(fmt::format("{}: has another digest than {} says: it is damaged, or was changed",
                              quoted_path(file.path()), kShardIndexName));
}

uint32_t little_endian(const uint8_t* bytes, int width) {
  uint32_t value = 0;
  for (int i = 0; i < width; ++i) value |= uint32_t{bytes[i]} << (8 * i);
  return value;
}

}  // namespace

ShardSet::ShardSet(std::string folder) : folder_(std::move(folder)), index_(load_shard_index(folder_)) {
  for (size_t split = 0; split < shards_.size(); ++split) {
    int64_t end = 0;
    for (const Shard& shard : index_.splits[split].shards) {
      MappedFile file(shard_file(folder_, shard_name(static_cast<Split>(split), shards_[split].size())));
      const auto wanted = static_cast<size_t>(shard.tokens) * static_cast<size_t>(index_.width());
      if (file.bytes().size() != wanted) {
        throw DataError(fmt::format("{}: must have {} bytes, as {} says, got {}", quoted_path(file.path()), wanted,
                                    kShardIndexName, file.bytes().size()));
      }
      end += shard.tokens;
      shards_[split].push_back({end, std::move(file)});
    }
  }
}

void ShardSet::read(Split split, int64_t first, std::span<int32_t> tokens) const {
  const std::vector<Mapped>& shards = shards_[static_cast<size_t>(split)];
  const int width = index_.width();
  auto shard = std::partition_point(shards.begin(), shards.end(), [&](const Mapped& s) { return s.end <= first; });
  for (size_t done = 0; done < tokens.size(); ++shard) {
    const auto all = static_cast<int64_t>(shard->file.bytes().size()) / width;
    const int64_t begin = first + static_cast<int64_t>(done) - (shard->end - all);
    const int64_t count = std::min(all - begin, static_cast<int64_t>(tokens.size() - done));
    const uint8_t* bytes = shard->file.bytes().data() + begin * width;
    for (int64_t i = 0; i < count; ++i, bytes += width) {
      const uint32_t token = little_endian(bytes, width);
      if (token >= static_cast<uint64_t>(index_.vocab_size)) {
        throw DataError(fmt::format("{}: token {} must be below {}, the size of the vocabulary, got {}",
                                    quoted_path(shard->file.path()), begin + i, index_.vocab_size, token));
      }
      tokens[done++] = static_cast<int32_t>(token);
    }
  }
}

std::unique_ptr<Tokenizer> ShardSet::tokenizer() const {
  if (index_.tokenizer_sha256.empty()) return make_tokenizer("bytes");
  const MappedFile file(shard_file(folder_, kShardTokenizerName));
  check_digest(file, index_.tokenizer_sha256);
  auto tokenizer = parse_tokenizer({file.bytes().begin(), file.bytes().end()}, file.path());
  if (tokenizer->vocab_size() != index_.vocab_size) {
    throw DataError(fmt::format("{}: has {} tokens, but {} says {}", quoted_path(file.path()), tokenizer->vocab_size(),
                                kShardIndexName, index_.vocab_size));
  }
  return tokenizer;
}

void ShardSet::verify() const {
  if (!index_.tokenizer_sha256.empty()) {
    check_digest(MappedFile(shard_file(folder_, kShardTokenizerName)), index_.tokenizer_sha256);
  }
  for (size_t split = 0; split < shards_.size(); ++split) {
    for (size_t i = 0; i < shards_[split].size(); ++i) {
      check_digest(shards_[split][i].file, index_.splits[split].shards[i].sha256);
    }
  }
}

}  // namespace margay
