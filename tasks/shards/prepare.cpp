#include "tasks/shards/prepare.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "engine/atomic_file.h"
#include "engine/error.h"
#include "engine/file.h"
#include "tasks/hf/json_object.h"
#include "tasks/shards/index.h"
#include "tasks/shards/sources.h"
#include "tasks/tokenizer/part_reader.h"
#include "tasks/tokenizer/tokenizer.h"
#include "tasks/train/folders.h"
#include "tasks/train/sha256.h"

namespace margay {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kJournal = "progress.json";
constexpr size_t kMostJournalBytes = size_t{512} << 20;

std::string digest(std::string_view text) {
  return sha256({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

/// Where the next token comes from: the text from byte `offset` of a stretch on, `skip` tokens later.
struct Cursor {
  size_t split = 0, stretch = 0;
  int64_t offset = -1;  // -1 = where the stretch begins
  int64_t skip = 0;
  bool open = false;  // the last document of the index goes on there
};

/// When files were last changed.
std::string times_of(const std::vector<TextFile>& files) {
  std::string times;
  for (const TextFile& file : files) {
    struct stat info {};
    if (::stat(file.path.c_str(), &info) != 0) throw_file_error(file.path, "cannot be read", errno);
    times += fmt::format("{}.{}\n", info.st_mtim.tv_sec, info.st_mtim.tv_nsec);
  }
  return digest(times);
}

std::string source_of(const std::vector<TextFile>& files) {
  std::string text;
  for (const TextFile& file : files) text += fmt::format("{} {}\n", file.size, quoted_path(file.path));
  return digest(text);
}

/// What a stopped run has left: the index of the shards so far, and where to go on.
class Journal {
 public:
  Journal(const LockedFolder& folder, std::string times, int64_t shard_tokens)
      : path_(folder.file(kJournal)), times_(std::move(times)), shard_tokens_(shard_tokens) {}

  bool exists() const {
    std::error_code ignored;
    return fs::exists(path_, ignored);
  }

  void write(const ShardIndex& index, const Cursor& cursor) const {
    const Json json{{"changed", times_},
                    {"shard_tokens", shard_tokens_},
                    {"cursor",
                     {{"split", cursor.split},
                      {"stretch", cursor.stretch},
                      {"offset", cursor.offset},
                      {"skip", cursor.skip},
                      {"open", cursor.open}}},
                    {"index", Json::parse(to_json(index))}};
    write_file_atomically(path_, json.dump() + '\n');
  }

  /// Reads it over what a run starts with, which says what must not have changed.
  void read(ShardIndex& index, Cursor& cursor, const std::array<std::vector<TextStretch>, 3>& splits) const {
    const JsonObject json = JsonObject::load(path_, kMostJournalBytes);
    const ShardIndex saved = parse_shard_index(json.object("index"));
    const bool same = saved.source_sha256 == index.source_sha256 && saved.tokenizer_sha256 == index.tokenizer_sha256 &&
                      json.text("changed") == times_ && json.integer("shard_tokens", 0, INT64_MAX) == shard_tokens_;
    if (!same) {
      throw ConfigError(
          fmt::format("{}: these shards were begun with other files, another tokenizer or other settings; "
                      "delete the folder, or choose another",
                      quoted_path(path_)));
    }
    const JsonObject place = json.object("cursor");
    cursor.split = static_cast<size_t>(place.integer("split", 0, 2));
    const auto& stretches = splits[cursor.split];
    if (stretches.empty()) place.fail("split", "one with text");
    cursor.stretch = static_cast<size_t>(place.integer("stretch", 0, static_cast<int64_t>(stretches.size()) - 1));
    const TextStretch& stretch = stretches[cursor.stretch];
    cursor.offset = place.integer("offset", stretch.begin, stretch.end);
    cursor.skip = place.integer("skip", 0, INT64_MAX);
    cursor.open = place.flag("open");
    if (cursor.open && saved.splits[cursor.split].documents.empty()) place.fail("open", "false without documents");
    index = saved;
  }

  void remove() const {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }

 private:
  std::string path_, times_;
  int64_t shard_tokens_;
};

/// Encodes texts and writes shards.
class Writer {
 public:
  Writer(const LockedFolder& folder, const Tokenizer& tokenizer, const std::vector<TextFile>& files,
         const std::array<std::vector<TextStretch>, 3>& splits, const Journal& journal, int64_t shard_tokens,
         PrepareObserver& observer)
      : folder_(folder),
        tokenizer_(tokenizer),
        files_(files),
        splits_(splits),
        journal_(journal),
        shard_tokens_(shard_tokens),
        observer_(observer) {}

  /// Goes on from a place with the index of what was written before; false if the observer stopped it.
  bool run(ShardIndex& index, const Cursor& start) {
    index_ = &index;
    start_progress(start);
    for (cursor_ = start; cursor_.split < splits_.size(); cursor_ = {.split = cursor_.split + 1}) {
      for (; cursor_.stretch < splits_[cursor_.split].size(); cursor_ = {cursor_.split, cursor_.stretch + 1}) {
        if (!add_stretch(splits_[cursor_.split][cursor_.stretch])) return false;
      }
      write_shard();
      const size_t next = cursor_.split + 1;
      if (next == splits_.size() || splits_[next].empty()) continue;
      journal_.write(*index_, {.split = next, .offset = splits_[next].front().begin});
    }
    return true;
  }

 private:
  ShardSplit& split() { return index_->splits[cursor_.split]; }

  void start_progress(const Cursor& start) {
    for (size_t s = 0; s < splits_.size(); ++s) {
      for (size_t i = 0; i < splits_[s].size(); ++i) {
        const TextStretch& stretch = splits_[s][i];
        progress_.bytes += stretch.end - stretch.begin;
        if (s < start.split || (s == start.split && i < start.stretch)) {
          progress_.done_bytes += stretch.end - stretch.begin;
        } else if (s == start.split && i == start.stretch && start.offset >= 0) {
          progress_.done_bytes += start.offset - stretch.begin;
        }
      }
      progress_.tokens += index_->splits[s].tokens();
    }
  }

  bool add_stretch(const TextStretch& stretch) {
    if (cursor_.offset < 0) cursor_.offset = stretch.begin;
    if (!cursor_.open) split().documents.push_back(0);
    cursor_.open = true;
    bool stopped = false;
    std::vector<int32_t> tokens;
    read_parts(files_[stretch.file].path, cursor_.offset, stretch.end, [&](std::string_view part, bool last) {
      stopped = stopped || observer_.stop_requested();
      if (stopped) return part.size();
      tokens.clear();
      const size_t done = tokenizer_.encode_part(part, last, tokens);
      add(tokens);
      cursor_.offset += static_cast<int64_t>(done);
      cursor_.skip -= static_cast<int64_t>(tokens.size());
      progress_.done_bytes += static_cast<int64_t>(done);
      observer_.on_progress(progress_);
      return done;
    });
    if (stopped) return false;
    if (const auto end = tokenizer_.end_of_text(); end && stretch.ends_document) add({*end});
    return true;
  }

  /// Adds the tokens at the cursor but those that are in shards already.
  void add(const std::vector<int32_t>& tokens) {
    while (cursor_.skip < static_cast<int64_t>(tokens.size())) {
      const auto token = static_cast<uint32_t>(tokens[static_cast<size_t>(cursor_.skip++)]);
      for (int i = 0; i < index_->width(); ++i) buffer_ += static_cast<char>(token >> (8 * i) & 0xFF);
      ++split().documents.back();
      ++progress_.tokens;
      if (static_cast<int64_t>(buffer_.size()) < shard_tokens_ * index_->width()) continue;
      write_shard();
      journal_.write(*index_, cursor_);
    }
  }

  void write_shard() {
    if (buffer_.empty()) return;
    const std::string name = shard_name(static_cast<Split>(cursor_.split), split().shards.size());
    write_file_atomically(folder_.file(name), buffer_);
    split().shards.push_back({static_cast<int64_t>(buffer_.size()) / index_->width(), digest(buffer_)});
    buffer_.clear();
  }

  const LockedFolder& folder_;
  const Tokenizer& tokenizer_;
  const std::vector<TextFile>& files_;
  const std::array<std::vector<TextStretch>, 3>& splits_;
  const Journal& journal_;
  int64_t shard_tokens_;
  PrepareObserver& observer_;
  ShardIndex* index_ = nullptr;
  Cursor cursor_;
  std::string buffer_;  // of the shard that is being filled
  PrepareProgress progress_;
};

/// Throws DataError where a shard that a stopped run has written is gone.
void check_shards(const LockedFolder& folder, const ShardIndex& index) {
  for (size_t split = 0; split < index.splits.size(); ++split) {
    for (size_t i = 0; i < index.splits[split].shards.size(); ++i) {
      const std::string path = shard_file(folder.path(), shard_name(static_cast<Split>(split), i));
      if (regular_file_size(path) != index.splits[split].shards[i].tokens * index.width()) {
        throw DataError(fmt::format("{}: was changed since it was written; delete the folder", quoted_path(path)));
      }
    }
  }
}

/// Files of writes that a kill has cut short.
void remove_temporary_files(const LockedFolder& folder) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder.path(), ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".margay-") && name.ends_with(".tmp")) fs::remove(entry.path(), ignored);
  }
}

/// Whether the folder holds the whole of what is wanted.
bool is_finished(const LockedFolder& folder, const ShardIndex& wanted) {
  std::error_code ignored;
  if (!fs::exists(fs::symlink_status(folder.file(kShardIndexName), ignored))) return false;
  const ShardIndex index = load_shard_index(folder.path());
  if (index.source_sha256 != wanted.source_sha256 || index.tokenizer_sha256 != wanted.tokenizer_sha256) {
    throw ConfigError(fmt::format("{} holds shards of other files or of another tokenizer; choose another folder",
                                  quoted_path(folder.path())));
  }
  return true;
}

}  // namespace

PrepareEnd prepare_shards(const PrepareOptions& options, PrepareObserver& observer) {
  const auto tokenizer = make_tokenizer(options.tokenizer);
  const std::vector<TextFile> files = list_text_files(options.files);
  const auto splits = split_texts(files);
  ShardIndex index;
  index.vocab_size = tokenizer->vocab_size();
  index.end_of_text = tokenizer->end_of_text();
  index.source_sha256 = source_of(files);
  if (!tokenizer->json().empty()) index.tokenizer_sha256 = digest(tokenizer->json());
  for (size_t split = 0; split < splits.size(); ++split) {
    for (const TextStretch& stretch : splits[split]) index.splits[split].bytes += stretch.end - stretch.begin;
  }

  const LockedFolder folder(options.folder, "making shards");
  const Journal journal(folder, times_of(files), options.shard_tokens);
  remove_temporary_files(folder);
  if (is_finished(folder, index)) {
    journal.remove();
    return PrepareEnd::was_finished;
  }
  Cursor cursor;
  if (journal.exists()) {
    journal.read(index, cursor, splits);
    check_shards(folder, index);
  } else if (!tokenizer->json().empty()) {
    write_file_atomically(folder.file(kShardTokenizerName), tokenizer->json());
  }
  Writer writer(folder, *tokenizer, files, splits, journal, options.shard_tokens, observer);
  if (!writer.run(index, cursor)) return PrepareEnd::stopped;
  write_file_atomically(folder.file(kShardIndexName), to_json(index));
  journal.remove();
  return PrepareEnd::finished;
}

}  // namespace margay
