#include "tasks/shards/index.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <system_error>

#include "engine/error.h"
#include "engine/file.h"
#include "tasks/hf/json_object.h"

namespace margay {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int64_t kFormat = 1;
constexpr size_t kMostIndexBytes = size_t{256} << 20;
constexpr int64_t kMostTokens = int64_t{1} << 48;
constexpr int64_t kLargestVocabulary = (int64_t{1} << 31) - 1;

const char* dtype_name(int width) { return width == 1 ? "u8" : width == 2 ? "u16" : "u32"; }

std::string sha256_of(const JsonObject& object, std::string_view key) {
  const std::string digest = object.text(key);
  const bool valid = digest.size() == 64 && digest.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!valid) object.fail(key, "a SHA-256 digest in 64 hexadecimal digits");
  return digest;
}

/// Whether counts, none of them negative, have this sum. No sum in between overflows.
bool add_up(const std::vector<int64_t>& counts, int64_t sum) {
  for (const int64_t count : counts) {
    if (count > sum) return false;
    sum -= count;
  }
  return sum == 0;
}

ShardSplit parse_split(const JsonObject& json, Split split) {
  ShardSplit result;
  result.bytes = json.integer("bytes", 0, kMostTokens);
  result.documents = json.integer_list("documents", 0, kMostTokens);
  for (const JsonObject& item : json.objects("shards")) {
    const std::string name = shard_name(split, result.shards.size());
    if (item.text("file") != name) item.fail("file", name);
    result.shards.push_back({item.integer("tokens", 1, kMostTokens), sha256_of(item, "sha256")});
  }
  const int64_t tokens = json.integer("tokens", 0, kMostTokens);
  std::vector<int64_t> counts;
  for (const Shard& shard : result.shards) counts.push_back(shard.tokens);
  if (!add_up(counts, tokens)) json.fail("tokens", "the sum of those of its shards");
  if (!add_up(result.documents, tokens)) json.fail("tokens", "the sum of those of its documents");
  return result;
}

}  // namespace

int64_t ShardSplit::tokens() const {
  return std::accumulate(shards.begin(), shards.end(), int64_t{0},
                         [](int64_t sum, const Shard& shard) { return sum + shard.tokens; });
}

int ShardIndex::width() const { return vocab_size <= 1 << 8 ? 1 : vocab_size <= 1 << 16 ? 2 : 4; }

std::string shard_name(Split split, size_t number) {
  return fmt::format("{}-{:05}.bin", kSplitFileNames[static_cast<size_t>(split)], number);
}

std::string to_json(const ShardIndex& index) {
  Json tokenizer{{"name", index.tokenizer_sha256.empty() ? "bytes" : kShardTokenizerName}};
  if (!index.tokenizer_sha256.empty()) tokenizer["sha256"] = index.tokenizer_sha256;
  tokenizer["vocab_size"] = index.vocab_size;
  if (index.end_of_text) tokenizer["end_of_text"] = *index.end_of_text;
  Json splits = Json::object();
  for (size_t i = 0; i < index.splits.size(); ++i) {
    const ShardSplit& split = index.splits[i];
    Json shards = Json::array();
    for (size_t number = 0; number < split.shards.size(); ++number) {
      const Shard& shard = split.shards[number];
      shards.push_back(
          {{"file", shard_name(static_cast<Split>(i), number)}, {"tokens", shard.tokens}, {"sha256", shard.sha256}});
    }
    splits[kSplitFileNames[i]] = {{"tokens", split.tokens()},
                                  {"bytes", split.bytes},
                                  {"shards", std::move(shards)},
                                  {"documents", split.documents}};
  }
  return Json{{"format", kFormat},
              {"dtype", dtype_name(index.width())},
              {"tokenizer", std::move(tokenizer)},
              {"source_sha256", index.source_sha256},
              {"splits", std::move(splits)}}
             .dump(1) +
         '\n';
}

ShardIndex parse_shard_index(const JsonObject& json) {
  json.integer("format", kFormat, kFormat);
  const JsonObject tokenizer = json.object("tokenizer");
  ShardIndex index;
  index.vocab_size = tokenizer.integer("vocab_size", 1, kLargestVocabulary);
  if (tokenizer.has("end_of_text")) {
    index.end_of_text = static_cast<int32_t>(tokenizer.integer("end_of_text", 0, index.vocab_size - 1));
  }
  const std::string name = tokenizer.text("name");
  if (name == kShardTokenizerName) {
    index.tokenizer_sha256 = sha256_of(tokenizer, "sha256");
  } else if (name != "bytes") {
    tokenizer.fail("name", fmt::format("\"bytes\" or \"{}\"", kShardTokenizerName));
  } else {
    tokenizer.integer("vocab_size", 256, 256);
  }
  if (json.text("dtype") != dtype_name(index.width())) json.fail("dtype", dtype_name(index.width()));
  index.source_sha256 = sha256_of(json, "source_sha256");
  const JsonObject splits = json.object("splits");
  for (size_t i = 0; i < index.splits.size(); ++i) {
    index.splits[i] = parse_split(splits.object(kSplitFileNames[i]), static_cast<Split>(i));
  }
  return index;
}

ShardIndex load_shard_index(const std::string& folder) {
  return parse_shard_index(JsonObject::load(shard_file(folder, kShardIndexName), kMostIndexBytes));
}

std::string shard_file(const std::string& folder, const std::string& name) {
  const std::string path = (fs::path(folder) / name).string();
  std::error_code error;
  const fs::file_type type = fs::symlink_status(path, error).type();
  if (type == fs::file_type::not_found) throw_file_error(path, "cannot be read", ENOENT);
  if (error) throw_file_error(path, "cannot be read", error.value());
  if (type != fs::file_type::regular) throw DataError(quoted_path(path) + ": is not a regular file");
  return path;
}

}  // namespace margay
