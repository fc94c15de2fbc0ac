#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace margay {

struct PrepareOptions {
  std::vector<std::string> files;            ///< texts, or folders of them; each text is a document
  std::string tokenizer = "bytes";           ///< see make_tokenizer
  std::string folder;                        ///< where the shards go
  int64_t shard_tokens = int64_t{16} << 20;  ///< of all shards but the last of a split
};

struct PrepareProgress {
  int64_t bytes = 0, done_bytes = 0;  ///< of text
  int64_t tokens = 0;                 ///< written or about to be
};

/// What happens while shards are made.
class PrepareObserver {
 public:
  virtual ~PrepareObserver() = default;
  virtual void on_progress(const PrepareProgress&) {}
  virtual bool stop_requested() { return false; }
};

enum class PrepareEnd {
  finished,
  stopped,       ///< by the observer; the same call goes on from there
  was_finished,  ///< before: nothing was changed
};

/// Makes token shards (see index.h) of texts. Each document is encoded as a whole, though no more of it is in memory
/// than a part, and followed by the tokenizer's end of text, where it has one. The first 90 % of the bytes are for
/// training, the next 5 % for validation, the rest for test (see split_texts).
///
/// A shard is written under another name, synced and renamed; then progress.json says how to go on behind it. So the
/// same call, made again after a kill at any instant, leaves the same bytes as one that was never disturbed. Throws
/// ConfigError where the folder holds shards of something else or another process works there, DataError for files that
/// cannot be read or have changed since, ResourceError for a full disk.
PrepareEnd prepare_shards(const PrepareOptions& options, PrepareObserver& observer);

}  // namespace margay
