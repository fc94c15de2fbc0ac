#include "tasks/shards/prepare.h"

#include <fmt/format.h>

#include <chrono>

#include "engine/error.h"
#include "engine/file.h"
#include "tasks/shards/shard_set.h"
#include "tools/margay/line_display.h"
#include "tools/margay/signals.h"
#include "tools/margay/terminal.h"
#include "tools/margay/text.h"
#include "tools/margay/verbs.h"

namespace margay::cli {
namespace {

class Watch final : public PrepareObserver {
 public:
  explicit Watch(bool quiet) : display_(quiet), start_(Clock::now()) {}

  void on_progress(const PrepareProgress& progress) override {
    if (before_ < 0) before_ = progress.done_bytes;
    if (!display_.due(false)) return;
    const double passed = std::chrono::duration<double>(Clock::now() - start_).count();
    const auto done = static_cast<double>(progress.done_bytes - before_);
    const auto left = static_cast<double>(progress.bytes - progress.done_bytes);
    const double share = static_cast<double>(progress.done_bytes) / static_cast<double>(progress.bytes);
    const std::string text = fmt::format(
        "{:3.0f} %  {} of {}  {} tokens{}", 100 * share, short_bytes(static_cast<double>(progress.done_bytes)),
        short_bytes(static_cast<double>(progress.bytes)), short_count(static_cast<double>(progress.tokens)),
        done > 0 ? fmt::format("  {}/s  ETA {}", short_bytes(done / passed), duration(passed * left / done)) : "");
    display_.show("prepare", share, text, text);
  }
  bool stop_requested() override { return stop_signal() != 0; }
  void finish(const std::string& line) { display_.print_line(line); }

 private:
  using Clock = std::chrono::steady_clock;

  LineDisplay display_;
  Clock::time_point start_;
  int64_t before_ = -1;  // bytes that an earlier run had done
};

std::string describe(const std::string& folder) {
  const ShardIndex index = load_shard_index(folder);
  std::vector<std::vector<std::string>> rows{{"split", "tokens", "bytes", "documents", "shards"}};
  for (size_t i = 0; i < index.splits.size(); ++i) {
    const ShardSplit& split = index.splits[i];
    rows.push_back({kSplitFileNames[i], with_commas(split.tokens()), with_commas(split.bytes),
                    with_commas(static_cast<int64_t>(split.documents.size())),
                    with_commas(static_cast<int64_t>(split.shards.size()))});
  }
  return table(rows, true) +
         fmt::format("train on it: task.name=text task.path={} model.vocab_size={}", folder, index.vocab_size);
}

int run(const Arguments& arguments) {
  PrepareOptions options;
  options.tokenizer.clear();
  bool verify = false, quiet = false;
  CommandLine line("prepare",
                   "Makes token shards of texts, which training maps: the first 90 % of the bytes for training, then\n"
                   "5 % for validation and 5 % for test, cut between documents or lines. Each file is a document. The\n"
                   "same command goes on where it was stopped.");
  line.arguments("FILE", options.files, "text, or a folder of it");
  line.option("--tokenizer NAME", options.tokenizer, "bytes, or a tokenizer.json");
  line.option("--out DIR", options.folder, "the folder of the shards", true);
  line.option("--shard-tokens N", options.shard_tokens, 1, "tokens of a shard [16777216]");
  line.flag("--verify", verify, "compare the shards in DIR with their digests, and do nothing else");
  line.flag("--quiet", quiet, "print errors only");
  line.example("margay prepare data/corpora/linux-doc --tokenizer tokenizer.json --out data/shards", "");
  line.example("margay prepare --verify --out data/shards", "");
  if (!line.parse(arguments)) return 0;
  if (verify) {
    if (!options.files.empty()) throw ConfigError("--verify takes no FILE");
    ShardSet(options.folder).verify();
    if (!quiet) print_out(fmt::format("{}: all shards have their digests\n", options.folder));
    return 0;
  }
  if (options.files.empty()) throw ConfigError("FILE is missing: the texts to make shards of");
  if (options.tokenizer.empty()) throw ConfigError("--tokenizer is missing: bytes, or a tokenizer.json");

  note_stop_signals();
  Watch watch(quiet);
  switch (prepare_shards(options, watch)) {
    case PrepareEnd::stopped:
      watch.finish(fmt::format("stopped; the same command goes on from there, in {}", options.folder));
      return 128 + stop_signal();
    case PrepareEnd::was_finished:
      watch.finish(fmt::format("{} is finished already", options.folder));
      return 0;
    case PrepareEnd::finished:
      break;
  }
  watch.finish(describe(options.folder));
  return 0;
}

}  // namespace

extern const Verb kPrepare;
constinit const Verb kPrepare = {"prepare", "make token shards of texts, to train on", run};

}  // namespace margay::cli
