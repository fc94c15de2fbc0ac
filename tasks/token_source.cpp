#include "tasks/token_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "engine/error.h"
#include "engine/file.h"
#include "engine/mapped_file.h"
#include "engine/names.h"
#include "tasks/shards/shard_set.h"
#include "tasks/shards/sources.h"

namespace margay {
namespace {

/// The stretches of the three splits of one file.
std::array<TextStretch, 3> split_file(const MappedFile& file) {
  const TextFile text{file.path(), static_cast<int64_t>(file.bytes().size())};
  const auto splits = split_texts({&text, 1});
  std::array<TextStretch, 3> stretches;
  for (size_t i = 0; i < splits.size(); ++i) {
    if (!splits[i].empty()) stretches[i] = splits[i].front();
  }
  return stretches;
}

class ByteSource final : public TokenSource {
 public:
  explicit ByteSource(const std::string& path)
      : file_(path), parts_(split_file(file_)), tokenizer_(make_tokenizer("bytes")) {}

  int64_t size(Split split) const override { return part(split).end - part(split).begin; }
  void read(Split split, int64_t first, std::span<int32_t> tokens) const override {
    const auto bytes = file_.bytes().subspan(static_cast<size_t>(part(split).begin + first), tokens.size());
    std::copy(bytes.begin(), bytes.end(), tokens.begin());
  }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }

 private:
  const TextStretch& part(Split split) const { return parts_[static_cast<size_t>(split)]; }

  MappedFile file_;
  std::array<TextStretch, 3> parts_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

class EncodedSource final : public TokenSource {
 public:
  EncodedSource(const std::string& path, std::unique_ptr<Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {
    const MappedFile file(path);
    const std::span<const uint8_t> bytes = file.bytes();
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    const auto stretches = split_file(file);
    for (size_t i = 0; i < stretches.size(); ++i) {
      const auto [begin, end] = std::pair(stretches[i].begin, stretches[i].end);
      parts_[i] = tokenizer_->encode(text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
      if (const auto last = tokenizer_->end_of_text(); last && stretches[i].ends_document) parts_[i].push_back(*last);
    }
  }

  int64_t size(Split split) const override { return static_cast<int64_t>(part(split).size()); }
  void read(Split split, int64_t first, std::span<int32_t> tokens) const override {
    std::copy_n(part(split).begin() + first, tokens.size(), tokens.begin());
  }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }

 private:
  const std::vector<int32_t>& part(Split split) const { return parts_[static_cast<size_t>(split)]; }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::array<std::vector<int32_t>, 3> parts_;
};

class ShardSource final : public TokenSource {
 public:
  explicit ShardSource(const std::string& folder) : shards_(folder), tokenizer_(shards_.tokenizer()) {}

  int64_t size(Split split) const override { return shards_.index().of(split).tokens(); }
  void read(Split split, int64_t first, std::span<int32_t> tokens) const override {
    shards_.read(split, first, tokens);
  }
  const Tokenizer& tokenizer() const override { return *tokenizer_; }

 private:
  ShardSet shards_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace

std::unique_ptr<TokenSource> open_token_source(const std::string& path, const std::string& tokenizer) {
  std::error_code ignored;
  if (!std::filesystem::is_directory(path, ignored)) {
    if (tokenizer == "bytes") return std::make_unique<ByteSource>(path);
    return std::make_unique<EncodedSource>(path, make_tokenizer(tokenizer));
  }
  auto shards = std::make_unique<ShardSource>(path);
  if (tokenizer != "bytes" && make_tokenizer(tokenizer)->json() != shards->tokenizer().json()) {
    throw ConfigError(fmt::format("task.tokenizer must be the one that made the shards in {}, got {}",
                                  quoted_path(path), margay::quoted(tokenizer)));
  }
  return shards;
}

}  // namespace margay
