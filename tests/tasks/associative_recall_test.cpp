#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "tasks/batch.h"
#include "tasks/registry.h"
#include "tests/support/chi_square.h"

using namespace margay;

namespace {

TaskConfig recall(const char* form, int64_t seq_len, int64_t vocab_size) {
  TaskConfig config;
  config.name = "ar";
  config.form = form;
  config.seq_len = seq_len;
  config.vocab_size = vocab_size;
  return config;
}

/// What the definition says of both forms: one label, at the end; the last token came exactly once before; the label
/// followed it there.
std::string solve(std::span<const int32_t> inputs, std::span<const int32_t> targets, int64_t vocab_size) {
  const size_t last = inputs.size() - 1;
  size_t place = last, occurrences = 0;
  for (size_t at = 0; at < last; ++at) {
    if (targets[at] != kIgnoredTarget) return "target before the end";
    if (inputs[at] < 0 || inputs[at] >= vocab_size) return "token out of range";
    if (inputs[at] != inputs[last]) continue;
    place = at;
    ++occurrences;
  }
  if (occurrences != 1) return "query occurs " + std::to_string(occurrences) + " times before";
  if (place + 1 == last) return "query follows itself";
  return targets[last] == inputs[place + 1] ? "" : "target did not follow the query";
}

/// The layout of form "pairs".
std::string check_pairs(std::span<const int32_t> inputs, int64_t vocab_size) {
  const size_t pairs = (inputs.size() - 1) / 2, start = inputs.size() - 1 - 2 * pairs;
  const int32_t half = static_cast<int32_t>(vocab_size / 2);
  std::map<int32_t, int> keys;
  for (size_t at = 0; at < start; ++at) {
    if (inputs[at] != 0) return "filler is not 0";
  }
  for (size_t at = start; at < inputs.size() - 1; at += 2) {
    if (inputs[at] < 1 || inputs[at] >= half) return "key out of range";
    if (inputs[at + 1] < half || inputs[at + 1] >= vocab_size) return "value out of range";
    if (++keys[inputs[at]] > 1) return "key twice";
  }
  return "";
}

}  // namespace

TEST_CASE("ar: an oracle solves every example, at every length") {
  for (const TaskConfig& config : {recall("free", 128, 256), recall("free", 40, 2), recall("pairs", 128, 8192),
                                   recall("pairs", 127, 128), recall("free", 3, 2), recall("pairs", 3, 4)}) {
    CAPTURE(config.form);
    CAPTURE(config.seq_len);
    const auto task = make_task(config);
    for (int64_t seq_len = 3; seq_len <= config.seq_len; seq_len = std::max(seq_len + 1, seq_len * 3 / 2)) {
      Batch batch;
      make_batch(*task, Split::train, 0, 2000, seq_len, 2, batch);
      CHECK(batch.labels == batch.examples);
      for (int64_t i = 0; i < batch.examples; ++i) {
        const auto inputs = std::span<const int32_t>(batch.inputs).subspan(i * seq_len, seq_len);
        const auto targets = std::span<const int32_t>(batch.targets).subspan(i * seq_len, seq_len);
        REQUIRE(solve(inputs, targets, config.vocab_size) == "");
        if (config.form == "pairs") REQUIRE(check_pairs(inputs, config.vocab_size) == "");
      }
    }
  }
}

TEST_CASE("ar free: query, place and the other tokens are uniform") {
  constexpr int64_t kLength = 10, kVocabulary = 8;
  const auto task = make_task(recall("free", kLength, kVocabulary));
  std::vector<double> queries(kVocabulary, 0.0), places(kLength - 2, 0.0), others(kVocabulary - 1, 0.0);
  std::vector<int32_t> inputs(kLength), targets(kLength);
  for (int64_t i = 0; i < 30'000; ++i) {
    task->make(Split::train, i, kLength, inputs, targets);
    const int32_t query = inputs.back();
    ++queries[query];
    for (size_t at = 0; at + 1 < inputs.size(); ++at) {
      if (inputs[at] == query) {
        REQUIRE(at < places.size());
        ++places[at];
      } else {
        ++others[inputs[at] - (inputs[at] > query)];
      }
    }
  }
  CHECK(test::fits_law(queries, std::vector<double>(kVocabulary, 1.0 / kVocabulary)));
  CHECK(test::fits_law(places, std::vector<double>(kLength - 2, 1.0 / (kLength - 2))));
  CHECK(test::fits_law(others, std::vector<double>(kVocabulary - 1, 1.0 / (kVocabulary - 1))));
}

TEST_CASE("ar pairs: the queried pair, keys and values are uniform, and values may repeat") {
  constexpr int64_t kLength = 10, kVocabulary = 12;
  const auto task = make_task(recall("pairs", kLength, kVocabulary));
  std::vector<double> queried(4, 0.0), keys(5, 0.0), values(6, 0.0);
  std::vector<int32_t> inputs(kLength), targets(kLength);
  int64_t repeated = 0;
  for (int64_t i = 0; i < 30'000; ++i) {
    task->make(Split::train, i, kLength, inputs, targets);
    std::map<int32_t, int> seen;
    for (size_t pair = 0; pair < 4; ++pair) {
      queried[pair] += inputs[1 + 2 * pair] == inputs.back();
      ++keys[inputs[1 + 2 * pair] - 1];
      ++values[inputs[2 + 2 * pair] - 6];
      ++seen[inputs[2 + 2 * pair]];
    }
    repeated += seen.size() < 4;
  }
  CHECK(test::fits_law(queried, std::vector<double>(4, 0.25)));
  CHECK(test::fits_law(keys, std::vector<double>(5, 0.2)));
  CHECK(test::fits_law(values, std::vector<double>(6, 1.0 / 6)));
  CHECK(repeated > 0);
}
