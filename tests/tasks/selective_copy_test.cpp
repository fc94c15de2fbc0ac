#include <doctest/doctest.h>

#include <set>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/batch.h"
#include "tasks/registry.h"
#include "tests/support/chi_square.h"

using namespace margay;

namespace {

TaskConfig copying(int64_t seq_len, int64_t n_signals, int64_t n_copy, bool unique) {
  TaskConfig config;
  config.name = "selective_copy";
  config.seq_len = seq_len;
  config.n_signals = n_signals;
  config.n_copy = n_copy;
  config.unique = unique;
  return config;
}

/// Solves one example from its prompt alone. Returns what is wrong, else "".
std::string solve(const TaskConfig& config, size_t prompt, std::span<const int32_t> inputs,
                  std::span<const int32_t> targets) {
  std::vector<int32_t> signals;
  for (size_t at = 0; at < prompt; ++at) {
    if (targets[at] != kIgnoredTarget) return "target in the prompt";
    if (inputs[at] < 0 || inputs[at] > config.n_signals) return "token of the prompt out of range";
    if (inputs[at] < config.n_signals) signals.push_back(inputs[at]);
  }
  if (static_cast<int64_t>(signals.size()) != config.n_copy) return "number of signals";
  if (config.unique && std::set<int32_t>(signals.begin(), signals.end()).size() != signals.size())
    return "signal twice";
  if (inputs.size() != prompt + signals.size()) return "number of tokens";
  for (size_t i = 0; i < signals.size(); ++i) {
    const int32_t fed = i == 0 ? static_cast<int32_t>(config.n_signals) + 1 : signals[i - 1];
    if (inputs[prompt + i] != fed) return "token after the prompt";
    if (targets[prompt + i] != signals[i]) return "target is not the next signal";
  }
  return "";
}

}  // namespace

TEST_CASE("selective_copy: an oracle solves every example, at every length") {
  for (const TaskConfig& config : {copying(256, 16, 16, false), copying(64, 16, 8, true), copying(5, 5, 5, true),
                                   copying(1, 1, 1, false), copying(9, 2, 7, false)}) {
    CAPTURE(config.seq_len);
    CAPTURE(config.n_copy);
    const auto task = make_task(config);
    CHECK(task->shape().vocab_size == config.n_signals + 2);
    for (int64_t seq_len = config.n_copy; seq_len <= config.seq_len; seq_len += 1 + seq_len / 2) {
      const int64_t columns = task->columns(seq_len);
      CHECK(columns == seq_len + config.n_copy);
      Batch batch;
      make_batch(*task, Split::train, 0, 500, seq_len, 2, batch);
      CHECK(batch.labels == 500 * config.n_copy);
      std::string fault;
      for (int64_t i = 0; i < batch.examples && fault.empty(); ++i)
        fault = solve(config, static_cast<size_t>(seq_len), std::span(batch.inputs).subspan(i * columns, columns),
                      std::span(batch.targets).subspan(i * columns, columns));
      CHECK(fault == "");
    }
  }
}

TEST_CASE("selective_copy: places and signals are uniform, and signals may repeat") {
  constexpr int64_t kLength = 8, kSignals = 4, kCopy = 2;
  const auto task = make_task(copying(kLength, kSignals, kCopy, false));
  std::vector<double> places(kLength, 0.0), signals(kSignals * kSignals, 0.0);
  std::vector<int32_t> inputs(kLength + kCopy), targets(kLength + kCopy);
  for (int64_t i = 0; i < 30'000; ++i) {
    task->make(Split::train, i, kLength, inputs, targets);
    for (int64_t at = 0; at < kLength; ++at) places[at] += inputs[at] < kSignals;
    ++signals[targets[kLength] * kSignals + targets[kLength + 1]];
  }
  CHECK(test::fits_law(places, std::vector<double>(kLength, 1.0 / kLength)));
  CHECK(test::fits_law(signals, std::vector<double>(kSignals * kSignals, 1.0 / (kSignals * kSignals))));
}

TEST_CASE("selective_copy: sizes that do not fit name the key") {
  CHECK_THROWS_WITH_AS(make_task(copying(8, 16, 9, false)),
                       "task.n_copy of selective_copy must be at most task.seq_len = 8, got 9", ConfigError);
  CHECK_THROWS_WITH_AS(make_task(copying(64, 8, 9, true)),
                       "task.n_copy of selective_copy must be at most task.n_signals = 8 with task.unique, got 9",
                       ConfigError);
}
