#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "engine/error.h"
#include "tasks/registry.h"
#include "tasks/sampling.h"

namespace margay {
namespace {

/// Selective copying (Gu and Dao 2023, "Mamba", arXiv:2312.00752, section 3.1; Li et al. 2024, arXiv:2407.05591,
/// definition 4): signals at random places among noise, then a special token, after which the signals are to be given
/// in their order. Tokens: signals 0 ... n_signals - 1, noise n_signals, special n_signals + 1. An example is the
/// prompt of seq_len tokens, the special token, and all signals but the last: each is fed back after it was asked for.
class SelectiveCopy final : public Task {
 public:
  SelectiveCopy(const TaskConfig& config, const TaskShape& shape)
      : Task(config, shape), streams_(config.name, config.seed) {}

  int64_t max_labels(int64_t) const override { return config().n_copy; }

  void make(Split split, int64_t index, int64_t seq_len, std::span<int32_t> inputs,
            std::span<int32_t> targets) const override {
    RandomStream random = streams_.of(split, index);
    const auto noise = static_cast<int32_t>(config().n_signals);
    const auto prompt = static_cast<uint32_t>(seq_len), copied = static_cast<uint32_t>(config().n_copy);
    std::fill(inputs.begin(), inputs.end(), noise);
    std::fill(targets.begin(), targets.end(), kIgnoredTarget);
    std::vector<uint32_t> places(copied);
    draw_distinct(random, prompt, copied, [&](uint32_t i, uint32_t place) { places[i] = place; });
    std::sort(places.begin(), places.end());
    inputs[prompt] = noise + 1;
    draw_signals(random, [&](uint32_t i, uint32_t signal) {
      const auto token = static_cast<int32_t>(signal);
      inputs[places[i]] = targets[prompt + i] = token;
      if (i + 1 < copied) inputs[prompt + 1 + i] = token;
    });
  }

 private:
  template <class Emit>
  void draw_signals(RandomStream& random, const Emit& emit) const {
    const auto signals = static_cast<uint32_t>(config().n_signals), copied = static_cast<uint32_t>(config().n_copy);
    if (config().unique) return draw_distinct(random, signals, copied, emit);
    for (uint32_t i = 0; i < copied; ++i) emit(i, random.below(signals));
  }

  ExampleStreams streams_;
};

TaskShape shape_of(const TaskConfig& config) {
  if (config.n_copy > config.seq_len)
    throw ConfigError(fmt::format("task.n_copy of selective_copy must be at most task.seq_len = {}, got {}",
                                  config.seq_len, config.n_copy));
  if (config.unique && config.n_copy > config.n_signals)
    throw ConfigError(
        fmt::format("task.n_copy of selective_copy must be at most task.n_signals = {} with task.unique, got {}",
                    config.n_signals, config.n_copy));
  if (config.n_signals > (int64_t{1} << 31) - 3)
    throw ConfigError(
        fmt::format("task.n_signals of selective_copy must be at most 2147483645, got {}", config.n_signals));
  return {.vocab_size = config.n_signals + 2, .first_seq_len = config.n_copy, .extra_columns = config.n_copy};
}

}  // namespace

extern const TaskInfo kSelectiveCopyTask;
constinit const TaskInfo kSelectiveCopyTask = {
    .name = "selective_copy",
    .summary = "selective copying: the signals among noise, in their order, after a special token",
    .shape = shape_of,
    .make = [](const TaskConfig& config) -> std::unique_ptr<Task> {
      return std::make_unique<SelectiveCopy>(config, shape_of(config));
    },
};

}  // namespace margay
