#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "engine/error.h"
#include "engine/names.h"
#include "tasks/registry.h"
#include "tasks/sampling.h"
#include "tasks/token_source.h"

namespace margay {
namespace {

constexpr int64_t kPieceTokens = int64_t{1} << 16;
constexpr std::array<std::string_view, 3> kSplitNames = {"training", "validation", "test"};

/// Language modelling of a text: a file, or a folder of token shards (see open_token_source). Its first 90 % are for
/// training, the next 5 % for validation, the rest for test (see split_texts). A training example is a window at a
/// random place. Held-out windows lie `stride` apart, the last one at the end of the part; a token is scored only in
/// the first window that predicts it, so together they score every token of the part but the first once.
class Text final : public Task {
 public:
  Text(const TaskConfig& config, const TaskShape& shape, std::unique_ptr<TokenSource> source)
      : Task(config, shape), source_(std::move(source)), streams_(config.name, config.seed) {
    for (const Split split : {Split::train, Split::validation, Split::test}) {
      if (source_->size(split) > config.seq_len) continue;
      const int64_t all = source_->size(Split::train) + source_->size(Split::validation) + source_->size(Split::test);
      throw DataError(fmt::format(
          "text file {} is too short: of its {} {} {} are the {} part, and task.seq_len = {} needs at least {}",
          quoted(config.path), all, source_->tokenizer().json().empty() ? "bytes" : "tokens", source_->size(split),
          kSplitNames[static_cast<size_t>(split)], config.seq_len, config.seq_len + 1));
    }
  }

  int64_t size(Split split) const override {
    if (split == Split::train) return config().train_examples;
    const int64_t later = last_start(split, config().seq_len), stride = stride_for(config().seq_len);
    return std::min(config().test_examples, 1 + (later + stride - 1) / stride);
  }
  int64_t max_labels(int64_t seq_len) const override { return seq_len; }

  void make(Split split, int64_t index, int64_t seq_len, std::span<int32_t> inputs,
            std::span<int32_t> targets) const override {
    const int64_t last = last_start(split, seq_len), stride = stride_for(seq_len);
    int64_t start = 0, scored_before = 0;  // the window's first targets that an earlier one has scored
    if (split == Split::train) {
      RandomStream random = streams_.of(split, index);
      start = static_cast<int64_t>(uniform_below(random, static_cast<uint64_t>(last) + 1));
    } else if (index > 0) {
      const int64_t most = 1 + last / stride;  // bounds the products below
      start = std::min(std::min(index, most) * stride, last);
      scored_before = std::min(std::min(index - 1, most) * stride, last) + seq_len - start;
    }
    source_->read(split, start, inputs);
    source_->read(split, start + seq_len, targets.last(1));
    std::copy(inputs.begin() + 1, inputs.end(), targets.begin());
    std::fill_n(targets.begin(), scored_before, kIgnoredTarget);
  }

  bool read(Split split, const std::function<void(std::span<const int32_t>)>& take) const override {
    std::vector<int32_t> tokens;
    for (int64_t first = 0; first < source_->size(split); first += kPieceTokens) {
      tokens.resize(static_cast<size_t>(std::min(kPieceTokens, source_->size(split) - first)));
      source_->read(split, first, tokens);
      take(tokens);
    }
    return true;
  }

  const std::string& tokenizer_json() const override { return source_->tokenizer().json(); }

 private:
  int64_t last_start(Split split, int64_t seq_len) const { return source_->size(split) - seq_len - 1; }
  int64_t stride_for(int64_t seq_len) const {
    return config().stride == 0 ? seq_len : std::min(config().stride, seq_len);
  }

  std::unique_ptr<TokenSource> source_;
  ExampleStreams streams_;
};

TaskShape shape_of(const TaskConfig& config) {
  if (config.path.empty()) throw ConfigError("task.path must name the text file, got an empty string");
  if (config.tokenizer.empty()) throw ConfigError("task.tokenizer must be \"bytes\" or a tokenizer.json, got \"\"");
  if (config.stride > config.seq_len) {
    throw ConfigError(
        fmt::format("task.stride must be at most task.seq_len = {}, got {}", config.seq_len, config.stride));
  }
  // A tokenizer.json and token shards have as many tokens as they have, which is known once they are opened.
  return {.vocab_size = config.tokenizer == "bytes" ? 256 : 1, .first_seq_len = 1};
}

}  // namespace

extern const TaskInfo kTextTask;
constinit const TaskInfo kTextTask = {
    .name = "text",
    .summary = "next-token prediction on a text, by bytes or another tokenizer",
    .shape = shape_of,
    .make = [](const TaskConfig& config) -> std::unique_ptr<Task> {
      TaskShape shape = shape_of(config);
      auto source = open_token_source(config.path, config.tokenizer);
      shape.vocab_size = source->tokenizer().vocab_size();
      return std::make_unique<Text>(config, shape, std::move(source));
    },
};

}  // namespace margay
