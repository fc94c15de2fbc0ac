#include <fmt/format.h>

#include <algorithm>

#include "engine/error.h"
#include "tasks/registry.h"
#include "tasks/sampling.h"

namespace margay {
namespace {

/// Key-value pairs before the query of a "pairs" sequence.
int64_t pairs_in(int64_t seq_len) { return (seq_len - 1) / 2; }

/// Associative recall with one query, the last token: it occurred exactly once before, and the token that followed it
/// there is to be predicted (Li et al. 2025, "On the Power of Convolution Augmented Transformer", definition 2).
class AssociativeRecall final : public Task {
 public:
  AssociativeRecall(const TaskConfig& config, const TaskShape& shape)
      : Task(config, shape), streams_(config.name, config.seed) {}

  int64_t max_labels(int64_t) const override { return 1; }

  void make(Split split, int64_t index, int64_t seq_len, std::span<int32_t> inputs,
            std::span<int32_t> targets) const override {
    RandomStream random = streams_.of(split, index);
    std::fill(targets.begin(), targets.end(), kIgnoredTarget);
    targets[seq_len - 1] = config().form == "pairs" ? make_pairs(random, inputs) : make_free(random, inputs);
  }

 private:
  /// Random tokens other than the query, and the query at a random place and at the end. Returns the target.
  int32_t make_free(RandomStream& random, std::span<int32_t> inputs) const {
    const auto vocabulary = static_cast<uint32_t>(config().vocab_size);
    const uint32_t query = random.below(vocabulary);
    const size_t last = inputs.size() - 1;
    const size_t place = random.below(static_cast<uint32_t>(last - 1));  // its successor is not the query itself
    for (int32_t& token : inputs) {
      const uint32_t other = random.below(vocabulary - 1);
      token = static_cast<int32_t>(other + (other >= query));
    }
    inputs[place] = inputs[last] = static_cast<int32_t>(query);
    return inputs[place + 1];
  }

  /// Filler, then as many key-value pairs as fit, then one of the keys again. Keys differ, values may repeat. Returns
  /// the target.
  int32_t make_pairs(RandomStream& random, std::span<int32_t> inputs) const {
    const auto vocabulary = static_cast<uint32_t>(config().vocab_size), half = vocabulary / 2;
    const auto pairs = static_cast<uint32_t>(pairs_in(static_cast<int64_t>(inputs.size())));
    const size_t start = inputs.size() - 1 - 2 * size_t{pairs};
    std::fill_n(inputs.begin(), start, 0);
    draw_distinct(random, half - 1, pairs, [&](uint32_t pair, uint32_t key) {
      inputs[start + 2 * pair] = static_cast<int32_t>(1 + key);
      inputs[start + 2 * pair + 1] = static_cast<int32_t>(half + random.below(vocabulary - half));
    });
    const size_t queried = start + 2 * size_t{random.below(pairs)};
    inputs.back() = inputs[queried];
    return inputs[queried + 1];
  }

  ExampleStreams streams_;
};

TaskShape shape_of(const TaskConfig& config) {
  constexpr int64_t kShortest = 3;  // key, value, query
  if (config.seq_len < kShortest) {
    throw ConfigError(fmt::format("task.seq_len of ar must be at least {}, got {}", kShortest, config.seq_len));
  }
  const int64_t keys = pairs_in(config.seq_len), needed = config.form == "pairs" ? 2 * (keys + 1) : 2;
  if (config.vocab_size < needed) {
    throw ConfigError(
        fmt::format("task.vocab_size of ar in form \"{}\" must be at least {} for task.seq_len = {}, got {}",
                    config.form, needed, config.seq_len, config.vocab_size));
  }
  return {.vocab_size = config.vocab_size, .first_seq_len = kShortest};
}

}  // namespace

extern const TaskInfo kAssociativeRecallTask;
constinit const TaskInfo kAssociativeRecallTask = {
    .name = "ar",
    .summary = "associative recall: what followed the last token where it came before",
    .shape = shape_of,
    .make = [](const TaskConfig& config) -> std::unique_ptr<Task> {
      return std::make_unique<AssociativeRecall>(config, shape_of(config));
    },
};

}  // namespace margay
