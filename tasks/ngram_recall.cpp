#include <fmt/format.h>

#include <algorithm>

#include "engine/error.h"
#include "tasks/ngram.h"
#include "tasks/registry.h"
#include "tasks/sampling.h"

namespace margay {
namespace {

/// Associative recall with a query of n tokens, the last ones: they occurred exactly once before in this order, and the
/// token that followed them there is to be predicted (Li et al. 2024, "On the Power of Convolution Augmented
/// Transformer", arXiv:2407.05591, definition 3).
class NGramRecall final : public Task {
 public:
  NGramRecall(const TaskConfig& config, const TaskShape& shape)
      : Task(config, shape), streams_(config.name, config.seed), n_(static_cast<size_t>(config.n_gram)) {}

  int64_t max_labels(int64_t) const override { return 1; }

  void make(Split split, int64_t index, int64_t, std::span<int32_t> inputs, std::span<int32_t> targets) const override {
    RandomStream random = streams_.of(split, index);
    std::fill(targets.begin(), targets.end(), kIgnoredTarget);
    targets.back() = config().form == "pairs" ? make_pairs(random, inputs) : make_free(random, inputs);
  }

 private:
  /// Random tokens with the query at a random place and at the end; drawn anew while the query stands elsewhere too, so
  /// that every sequence of the definition is equally likely. Returns the target.
  int32_t make_free(RandomStream& random, std::span<int32_t> inputs) const {
    const auto vocabulary = static_cast<uint32_t>(config().vocab_size);
    const auto places = static_cast<uint32_t>(inputs.size() - 2 * n_);  // its successor is not part of the query
    const auto query = inputs.last(n_);
    while (true) {
      const size_t place = random.below(places);
      for (int32_t& token : inputs) token = static_cast<int32_t>(random.below(vocabulary));
      std::copy_n(query.begin(), n_, inputs.begin() + static_cast<std::ptrdiff_t>(place));
      const auto elsewhere = [&](auto from) {
        return std::search(from, inputs.end() - 1, query.begin(), query.end()) - inputs.begin();
      };
      const bool first = elsewhere(inputs.begin()) == static_cast<std::ptrdiff_t>(place);
      const auto after = inputs.begin() + static_cast<std::ptrdiff_t>(place) + 1;
      if (first && elsewhere(after) == static_cast<std::ptrdiff_t>(inputs.size()) - 1) return inputs[place + n_];
    }
  }

  /// Filler, then as many units of n key tokens and a value as fit, then one of the keys again. Keys differ, values may
  /// repeat. Returns the target.
  int32_t make_pairs(RandomStream& random, std::span<int32_t> inputs) const {
    const auto vocabulary = static_cast<uint32_t>(config().vocab_size), half = vocabulary / 2;
    const size_t unit = n_ + 1, units = (inputs.size() - n_) / unit, start = inputs.size() - n_ - units * unit;
    std::fill_n(inputs.begin(), start, 0);
    DistinctNGrams keys;
    for (size_t at = start; at + n_ < inputs.size(); at += unit) {
      const NGram& key = keys.next([&] {
        NGram gram(n_);
        for (int32_t& token : gram) token = static_cast<int32_t>(1 + random.below(half - 1));
        return gram;
      });
      std::copy(key.begin(), key.end(), inputs.begin() + static_cast<std::ptrdiff_t>(at));
      inputs[at + n_] = static_cast<int32_t>(half + random.below(vocabulary - half));
    }
    const size_t queried = start + unit * size_t{random.below(static_cast<uint32_t>(units))};
    std::copy_n(inputs.begin() + static_cast<std::ptrdiff_t>(queried), n_, inputs.last(n_).begin());
    return inputs[queried + n_];
  }

  ExampleStreams streams_;
  size_t n_;
};

TaskShape shape_of(const TaskConfig& config) {
  const int64_t n = config.n_gram, shortest = 2 * n + 1;  // key, value, query
  if (config.seq_len < shortest)
    throw ConfigError(fmt::format("task.seq_len of nar must be at least {} for task.n_gram = {}, got {}", shortest, n,
                                  config.seq_len));
  // Enough N-grams for all keys to differ, or for a query to be alone in random tokens about every third time.
  const bool pairs = config.form == "pairs";
  const int64_t tokens = pairs ? config.vocab_size / 2 - 1 : config.vocab_size;
  const int64_t needed = pairs ? (config.seq_len - n) / (n + 1) : config.seq_len;
  if (tokens < 1 || power_up_to(tokens, n, needed) < needed)
    throw ConfigError(
        fmt::format("task.vocab_size of nar in form \"{}\" must allow {} keys of task.n_gram = {} "
                    "tokens each, got {}",
                    config.form, needed, n, config.vocab_size));
  return {.vocab_size = config.vocab_size, .first_seq_len = shortest};
}

}  // namespace

extern const TaskInfo kNGramRecallTask;
constinit const TaskInfo kNGramRecallTask = {
    .name = "nar",
    .summary = "N-gram associative recall: what followed the last n tokens where they came before",
    .shape = shape_of,
    .make = [](const TaskConfig& config) -> std::unique_ptr<Task> {
      return std::make_unique<NGramRecall>(config, shape_of(config));
    },
};

}  // namespace margay
