#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "engine/error.h"
#include "engine/mapped_file.h"
#include "engine/names.h"
#include "tasks/registry.h"
#include "tasks/sampling.h"

namespace margay {
namespace {

constexpr size_t kPieceTokens = size_t{1} << 16;
constexpr std::array<std::string_view, 3> kSplitNames = {"training", "validation", "test"};

/// The first byte of a part that should start at `at`: just after the next line end, where one is near (within 1 % of
/// the text), so that held-out text starts with a whole line.
size_t next_line(std::span<const uint8_t> text, size_t at) {
  const auto near = text.subspan(at, std::min(text.size() - at, text.size() / 100));
  const auto end = std::find(near.begin(), near.end(), uint8_t{'\n'});
  return end == near.end() ? at : at + static_cast<size_t>(end - near.begin()) + 1;
}

/// Byte-level language modelling of one file. Its first 90 % are for training, the next 5 % for validation, the rest
/// for test, each border moved to the next line's start. A training example is a window at a random place. Held-out
/// windows lie `stride` apart, the last one at the end of the part; a byte is scored only in the first window that
/// predicts it, so together they score every byte of the part but the first once.
class Text final : public Task {
 public:
  Text(const TaskConfig& config, const TaskShape& shape)
      : Task(config, shape), file_(config.path), streams_(config.name, config.seed) {
    const std::span<const uint8_t> text = file_.bytes();
    const size_t validation = next_line(text, text.size() * 90 / 100);
    const size_t test = next_line(text, text.size() * 95 / 100);
    parts_ = {text.first(validation), text.subspan(validation, test - validation), text.subspan(test)};
    for (size_t split = 0; split < parts_.size(); ++split) {
      if (parts_[split].size() > static_cast<size_t>(config.seq_len)) continue;
      throw DataError(fmt::format(
          "text file {} is too short: of its {} bytes {} are the {} part, and task.seq_len = {} needs at least {}",
          quoted(config.path), text.size(), parts_[split].size(), kSplitNames[split], config.seq_len,
          config.seq_len + 1));
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
    const auto window = parts_[static_cast<size_t>(split)].subspan(start, seq_len + 1);
    std::copy_n(window.begin(), seq_len, inputs.begin());
    std::copy_n(window.begin() + 1, seq_len, targets.begin());
    std::fill_n(targets.begin(), scored_before, kIgnoredTarget);
  }

  bool read(Split split, const std::function<void(std::span<const int32_t>)>& take) const override {
    std::vector<int32_t> tokens;
    for (std::span<const uint8_t> left = parts_[static_cast<size_t>(split)]; !left.empty();
         left = left.subspan(tokens.size())) {
      const auto piece = left.first(std::min(left.size(), kPieceTokens));
      tokens.assign(piece.begin(), piece.end());
      take(tokens);
    }
    return true;
  }

 private:
  int64_t last_start(Split split, int64_t seq_len) const {
    return static_cast<int64_t>(parts_[static_cast<size_t>(split)].size()) - seq_len - 1;
  }
  int64_t stride_for(int64_t seq_len) const {
    return config().stride == 0 ? seq_len : std::min(config().stride, seq_len);
  }

  MappedFile file_;
  ExampleStreams streams_;
  std::array<std::span<const uint8_t>, 3> parts_;
};

TaskShape shape_of(const TaskConfig& config) {
  if (config.path.empty()) throw ConfigError("task.path must name the text file, got an empty string");
  if (config.tokenizer != "bytes") {
    throw ConfigError(fmt::format("task.tokenizer must be \"bytes\", got {}", quoted(config.tokenizer)));
  }
  if (config.stride > config.seq_len) {
    throw ConfigError(
        fmt::format("task.stride must be at most task.seq_len = {}, got {}", config.seq_len, config.stride));
  }
  return {.vocab_size = 256, .first_seq_len = 1};
}

}  // namespace

extern const TaskInfo kTextTask;
constinit const TaskInfo kTextTask = {
    .name = "text",
    .summary = "next-byte prediction on a text file",
    .shape = shape_of,
    .make = [](const TaskConfig& config) -> std::unique_ptr<Task> {
      return std::make_unique<Text>(config, shape_of(config));
    },
};

}  // namespace margay
