#include <fmt/format.h>

#include <algorithm>

#include "engine/error.h"
#include "tasks/registry.h"
#include "tasks/sampling.h"

namespace margay {

namespace {

/// Slots that a query may stand in: every second position after the pairs.
int64_t slots_of(int64_t seq_len, int64_t pairs) { return (seq_len - 2 * pairs) / 2; }

/// Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv:2312.04927): `pairs` keys, each followed by its
/// value, then filler in which every key comes once more; there its value is to be predicted.
class Mqar final : public Task {
 public:
  Mqar(const TaskConfig& config, const TaskShape& shape)
      : Task(config, shape),
        streams_(config.name, config.seed),
        slots_(slots_of(config.seq_len, config.num_kv_pairs), config.power_a) {}

  int64_t max_labels(int64_t) const override { return config().num_kv_pairs; }

  void make(Split split, int64_t index, int64_t seq_len, std::span<int32_t> inputs,
            std::span<int32_t> targets) const override {
    RandomStream random = streams_.of(split, index);
    const int64_t pairs = config().num_kv_pairs;
    const auto half = static_cast<uint32_t>(config().vocab_size / 2);
    const auto vocabulary = static_cast<uint32_t>(config().vocab_size);
    const auto count = static_cast<uint32_t>(pairs);
    std::fill(inputs.begin(), inputs.end(), 0);
    std::fill(targets.begin(), targets.end(), kIgnoredTarget);
    draw_distinct(random, half - 1, count,
                  [&](uint32_t pair, uint32_t key) { inputs[2 * pair] = static_cast<int32_t>(1 + key); });
    draw_distinct(random, vocabulary - half, count,
                  [&](uint32_t pair, uint32_t value) { inputs[2 * pair + 1] = static_cast<int32_t>(half + value); });
    slots_.draw(random, slots_of(seq_len, pairs), pairs, [&](int64_t pair, int64_t slot) {
      const int64_t position = 2 * (pairs + slot);
      inputs[position] = inputs[2 * pair];
      targets[position] = inputs[2 * pair + 1];
    });
    if (!config().random_non_queries) return;
    for (int32_t& token : inputs) {
      if (token == 0) token = static_cast<int32_t>(random.below(vocabulary));
    }
  }

 private:
  ExampleStreams streams_;
  SlotSampler slots_;
};

TaskShape shape_of(const TaskConfig& config) {
  const int64_t pairs = config.num_kv_pairs, seq_len = config.seq_len;
  if (seq_len % 2 != 0) throw ConfigError(fmt::format("task.seq_len of mqar must be even, got {}", seq_len));
  if (4 * pairs > seq_len) {
    throw ConfigError(fmt::format("task.num_kv_pairs of mqar must be at most a quarter of task.seq_len = {}, got {}",
                                  seq_len, pairs));
  }
  if (config.vocab_size <= seq_len) {
    throw ConfigError(fmt::format("task.vocab_size of mqar must be larger than task.seq_len = {}, got {}", seq_len,
                                  config.vocab_size));
  }
  return {.vocab_size = config.vocab_size, .first_seq_len = 4 * pairs, .seq_len_step = 2};
}

}  // namespace

extern const TaskInfo kMqarTask;
constinit const TaskInfo kMqarTask = {
    .name = "mqar",
    .summary = "multi-query associative recall: the value of every key that comes again",
    .shape = shape_of,
    .make = [](const TaskConfig& config) -> std::unique_ptr<Task> {
      return std::make_unique<Mqar>(config, shape_of(config));
    },
};

}  // namespace margay
