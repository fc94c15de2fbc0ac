#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "tasks/batch.h"
#include "tasks/registry.h"
#include "tests/support/chi_square.h"

using namespace margay;

namespace {

TaskConfig mqar(int64_t seq_len, int64_t pairs, int64_t vocab_size = 8192) {
  TaskConfig config;
  config.seq_len = seq_len;
  config.num_kv_pairs = pairs;
  config.vocab_size = vocab_size;
  return config;
}

/// Solves one example from its inputs alone, by the definition of the task. Returns what is wrong, else "".
std::string solve(const TaskConfig& config, std::span<const int32_t> inputs, std::span<const int32_t> targets) {
  const int32_t half = static_cast<int32_t>(config.vocab_size / 2);
  const auto context = static_cast<size_t>(2 * config.num_kv_pairs);
  std::map<int32_t, int32_t> value_of;
  std::set<int32_t> values;
  for (size_t at = 0; at < context; at += 2) {
    if (inputs[at] < 1 || inputs[at] >= half) return "key out of range";
    if (inputs[at + 1] < half || inputs[at + 1] >= config.vocab_size) return "value out of range";
    if (!value_of.emplace(inputs[at], inputs[at + 1]).second) return "key twice";
    if (!values.insert(inputs[at + 1]).second) return "value twice";
    if (targets[at] != kIgnoredTarget || targets[at + 1] != kIgnoredTarget) return "target among the pairs";
  }
  std::set<int32_t> queried;
  for (size_t at = context; at < inputs.size(); ++at) {
    if (targets[at] == kIgnoredTarget) {
      if (config.random_non_queries ? inputs[at] < 0 || inputs[at] >= config.vocab_size : inputs[at] != 0) {
        return "filler out of range";
      }
      continue;
    }
    if ((at - context) % 2 != 0) return "query between slots";
    const auto known = value_of.find(inputs[at]);
    if (known == value_of.end()) return "query of no key";
    if (known->second != targets[at]) return "target is not the key's value";
    if (!queried.insert(inputs[at]).second) return "key queried twice";
  }
  return queried.size() == value_of.size() ? "" : "key not queried";
}

}  // namespace

TEST_CASE("mqar: an oracle solves every example") {
  TaskConfig random_filler = mqar(64, 4);
  random_filler.random_non_queries = true;
  for (TaskConfig config : {mqar(64, 4), mqar(128, 8), mqar(64, 16), mqar(4, 1), mqar(4, 1, 5), mqar(512, 64, 513),
                            mqar(30, 7, 31), random_filler}) {
    CAPTURE(config.seq_len);
    CAPTURE(config.num_kv_pairs);
    const auto task = make_task(config);
    for (const Split split : {Split::train, Split::test}) {
      Batch batch;
      make_batch(*task, split, 0, 2000, config.seq_len, 2, batch);
      CHECK(batch.labels == 2000 * config.num_kv_pairs);
      std::string wrong;
      for (int64_t i = 0; i < batch.examples && wrong.empty(); ++i) {
        wrong = solve(config, std::span(batch.inputs).subspan(i * config.seq_len, config.seq_len),
                      std::span(batch.targets).subspan(i * config.seq_len, config.seq_len));
      }
      CHECK(wrong == "");
    }
  }
}

TEST_CASE("mqar: shorter examples of the same task are solvable too") {
  const TaskConfig config = mqar(64, 4);
  const auto task = make_task(config);
  for (int64_t seq_len = 16; seq_len <= 64; seq_len += 2) {
    Batch batch;
    make_batch(*task, Split::train, 0, 200, seq_len, 1, batch);
    for (int64_t i = 0; i < batch.examples; ++i) {
      REQUIRE(solve(config, std::span(batch.inputs).subspan(i * seq_len, seq_len),
                    std::span(batch.targets).subspan(i * seq_len, seq_len)) == "");
    }
  }
}

TEST_CASE("mqar: slots follow the power law, drawn one after the other") {
  constexpr int kExamples = 40'000;
  const TaskConfig config = mqar(64, 4);
  const auto task = make_task(config);
  constexpr size_t kSlots = 28;
  std::vector<double> law(kSlots), first(kSlots, 0.0), second(kSlots, 0.0), second_law(kSlots, 0.0);
  double total = 0;
  for (size_t slot = 0; slot < kSlots; ++slot) total += law[slot] = std::pow(static_cast<double>(slot + 1), -0.99);
  for (double& share : law) share /= total;
  for (size_t a = 0; a < kSlots; ++a) {
    for (size_t b = 0; b < kSlots; ++b) second_law[b] += a == b ? 0 : law[a] * law[b] / (1 - law[a]);
  }
  std::vector<int32_t> inputs(64), targets(64);
  for (int64_t i = 0; i < kExamples; ++i) {
    task->make(Split::train, i, 64, inputs, targets);
    for (size_t slot = 0; slot < kSlots; ++slot) {
      first[slot] += inputs[8 + 2 * slot] == inputs[0];   // the first pair's query
      second[slot] += inputs[8 + 2 * slot] == inputs[2];  // the second pair's
    }
  }
  CHECK(test::fits_law(first, law));
  CHECK(test::fits_law(second, second_law));
  CHECK_FALSE(test::fits_law(second, law));  // the test can tell the two laws apart
}

TEST_CASE("mqar: keys, values and random filler are uniform") {
  TaskConfig config = mqar(16, 2, 40);
  config.random_non_queries = true;
  const auto task = make_task(config);
  std::vector<double> keys(19, 0.0), values(20, 0.0), filler(40, 0.0);
  std::vector<int32_t> inputs(16), targets(16);
  for (int64_t i = 0; i < 20'000; ++i) {
    task->make(Split::train, i, 16, inputs, targets);
    for (size_t at = 0; at < 4; at += 2) {
      ++keys[inputs[at] - 1];
      ++values[inputs[at + 1] - 20];
    }
    for (size_t at = 4; at < 16; ++at) {
      if (targets[at] == kIgnoredTarget) ++filler[inputs[at]];
    }
  }
  CHECK(test::fits_law(keys, std::vector<double>(19, 1.0 / 19)));
  CHECK(test::fits_law(values, std::vector<double>(20, 1.0 / 20)));
  CHECK(test::fits_law(filler, std::vector<double>(40, 1.0 / 40)));
}
