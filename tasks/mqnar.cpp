#include <fmt/format.h>

#include <algorithm>

#include "engine/error.h"
#include "tasks/ngram.h"
#include "tasks/registry.h"
#include "tasks/sampling.h"

namespace margay {
namespace {

/// N-grams without a repeated token over a pool of `pool` tokens, or `limit` if that is smaller.
int64_t grams_over(int64_t pool, int64_t n, int64_t limit) {
  int64_t grams = 1;
  for (int64_t i = 0; i < n && grams < limit; ++i) grams = std::min(limit, grams * (pool - i));
  return grams;
}

/// The fewest tokens over which there are `pairs` N-grams without a repeated token, and so few that each token stands
/// in several of them: no single token tells which N-gram is asked for.
int64_t pool_of(int64_t n, int64_t pairs) {
  int64_t root = 1;
  while (power_up_to(root, n, pairs) < pairs) ++root;
  int64_t pool = std::max(n + 1, root + 1);
  while (grams_over(pool, n, pairs) < pairs) ++pool;
  return pool;
}

/// Slots that a query may stand in after the pairs.
int64_t slots_of(int64_t seq_len, int64_t n, int64_t pairs) { return seq_len / (n + 1) - pairs; }

/// Multi-query associative recall whose keys are N-grams over a few tokens (Li et al. 2024, arXiv:2407.05591, figure
/// 5): keys, each followed by its value, then filler in which every key comes once more; at its last token its value is
/// to be predicted.
class MqNar final : public Task {
 public:
  MqNar(const TaskConfig& config, const TaskShape& shape)
      : Task(config, shape),
        streams_(config.name, config.seed),
        slots_(slots_of(config.seq_len, config.n_gram, config.num_kv_pairs), config.power_a),
        pool_(pool_of(config.n_gram, config.num_kv_pairs)) {}

  int64_t max_labels(int64_t) const override { return config().num_kv_pairs; }

  void make(Split split, int64_t index, int64_t seq_len, std::span<int32_t> inputs,
            std::span<int32_t> targets) const override {
    RandomStream random = streams_.of(split, index);
    const int64_t n = config().n_gram, pairs = config().num_kv_pairs, unit = n + 1;
    std::fill(inputs.begin(), inputs.end(), 0);
    std::fill(targets.begin(), targets.end(), kIgnoredTarget);
    make_context(random, inputs);
    slots_.draw(random, slots_of(seq_len, n, pairs), pairs, [&](int64_t pair, int64_t slot) {
      const int64_t position = unit * (pairs + slot);
      std::copy_n(inputs.begin() + unit * pair, n, inputs.begin() + position);
      targets[position + n - 1] = inputs[unit * pair + n];
    });
  }

 private:
  void make_context(RandomStream& random, std::span<int32_t> inputs) const {
    const auto half = static_cast<uint32_t>(config().vocab_size / 2);
    const auto vocabulary = static_cast<uint32_t>(config().vocab_size);
    const auto n = static_cast<uint32_t>(config().n_gram), pairs = static_cast<uint32_t>(config().num_kv_pairs);
    NGram pool(static_cast<size_t>(pool_));
    draw_distinct(random, half - 1, static_cast<uint32_t>(pool_),
                  [&](uint32_t place, uint32_t token) { pool[place] = static_cast<int32_t>(1 + token); });
    DistinctNGrams keys;
    for (uint32_t pair = 0; pair < pairs; ++pair) {
      const NGram& key = keys.next([&] {
        NGram gram(n);
        draw_distinct(random, static_cast<uint32_t>(pool_), n,
                      [&](uint32_t place, uint32_t token) { gram[place] = pool[token]; });
        return gram;
      });
      std::copy(key.begin(), key.end(), inputs.begin() + size_t{pair} * (n + 1));
    }
    draw_distinct(random, vocabulary - half, pairs, [&](uint32_t pair, uint32_t value) {
      inputs[size_t{pair} * (n + 1) + n] = static_cast<int32_t>(half + value);
    });
  }

  ExampleStreams streams_;
  SlotSampler slots_;
  int64_t pool_;
};

TaskShape shape_of(const TaskConfig& config) {
  const int64_t pairs = config.num_kv_pairs, n = config.n_gram, seq_len = config.seq_len;
  const int64_t shortest = 2 * (n + 1) * pairs;
  if (shortest > seq_len)
    throw ConfigError(
        fmt::format("task.num_kv_pairs of mqnar must be at most {} for task.seq_len = {} and task.n_gram = {}, got {}",
                    seq_len / (2 * (n + 1)), seq_len, n, pairs));
  const int64_t pool = pool_of(n, pairs), vocabulary = 2 * std::max(pool + 1, pairs);
  if (config.vocab_size < vocabulary)
    throw ConfigError(
        fmt::format("task.vocab_size of mqnar must be at least {} for task.num_kv_pairs = {} and task.n_gram = {}, "
                    "got {}",
                    vocabulary, pairs, n, config.vocab_size));
  return {.vocab_size = config.vocab_size, .first_seq_len = shortest};
}

}  // namespace

extern const TaskInfo kMqNarTask;
constinit const TaskInfo kMqNarTask = {
    .name = "mqnar",
    .summary = "multi-query associative recall whose keys are N-grams over a few tokens",
    .shape = shape_of,
    .make = [](const TaskConfig& config) -> std::unique_ptr<Task> {
      return std::make_unique<MqNar>(config, shape_of(config));
    },
};

}  // namespace margay
