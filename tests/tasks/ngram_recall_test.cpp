#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/error.h"
#include "tasks/batch.h"
#include "tasks/registry.h"
#include "tests/support/chi_square.h"

using namespace margay;

namespace {

using Tokens = std::span<const int32_t>;

TaskConfig ngram_recall(const char* form, int64_t n, int64_t seq_len, int64_t vocab_size) {
  TaskConfig config;
  config.name = "nar";
  config.form = form;
  config.n_gram = n;
  config.seq_len = seq_len;
  config.vocab_size = vocab_size;
  return config;
}

TaskConfig multi_query(int64_t n, int64_t seq_len, int64_t pairs, int64_t vocab_size = 8192) {
  TaskConfig config;
  config.name = "mqnar";
  config.n_gram = n;
  config.seq_len = seq_len;
  config.num_kv_pairs = pairs;
  config.vocab_size = vocab_size;
  return config;
}

/// Starts of all occurrences of `gram` in `tokens`.
std::vector<size_t> occurrences(Tokens tokens, Tokens gram) {
  std::vector<size_t> starts;
  for (size_t at = 0; at + gram.size() <= tokens.size(); ++at)
    if (std::equal(gram.begin(), gram.end(), tokens.begin() + static_cast<std::ptrdiff_t>(at))) starts.push_back(at);
  return starts;
}

/// What the definition says of both forms: one label, at the end; the last n tokens stand exactly once before the end,
/// and the label followed them there, before the query began.
std::string solve(size_t n, Tokens inputs, Tokens targets, int64_t vocab_size) {
  for (size_t at = 0; at < inputs.size(); ++at) {
    if (inputs[at] < 0 || inputs[at] >= vocab_size) return "token out of range";
    if (at + 1 < inputs.size() && targets[at] != kIgnoredTarget) return "target before the end";
  }
  const std::vector<size_t> places = occurrences(inputs.first(inputs.size() - 1), inputs.last(n));
  if (places.size() != 1) return "query occurs " + std::to_string(places.size()) + " times before";
  if (places[0] + n >= inputs.size() - n) return "the answer is part of the query";
  return targets.back() == inputs[places[0] + n] ? "" : "target did not follow the query";
}

/// The layout of form "pairs".
std::string check_pairs(size_t n, Tokens inputs, int64_t vocab_size) {
  const size_t units = (inputs.size() - n) / (n + 1), start = inputs.size() - n - units * (n + 1);
  std::set<std::vector<int32_t>> keys;
  for (size_t at = 0; at < inputs.size(); ++at) {
    const bool is_filler = at < start, is_value = !is_filler && (at - start) % (n + 1) == n;
    if (is_filler && inputs[at] != 0) return "filler is not 0";
    if (!is_filler && !is_value && (inputs[at] < 1 || inputs[at] >= vocab_size / 2)) return "key out of range";
    if (is_value && inputs[at] < vocab_size / 2) return "value out of range";
    if (is_value && !keys.emplace(&inputs[at - n], &inputs[at]).second) return "key twice";
  }
  return "";
}

/// Solves an example of mqnar from its inputs alone. Returns what is wrong, else "".
std::string solve_multi_query(const TaskConfig& config, Tokens inputs, Tokens targets) {
  const auto n = static_cast<size_t>(config.n_gram), context = (n + 1) * static_cast<size_t>(config.num_kv_pairs);
  const int32_t half = static_cast<int32_t>(config.vocab_size / 2);
  std::map<std::vector<int32_t>, int32_t> value_of;
  std::set<int32_t> values, pool;
  for (size_t at = 0; at < context; at += n + 1) {
    const Tokens key = inputs.subspan(at, n);
    for (const int32_t token : key) {
      if (token < 1 || token >= half) return "key out of range";
      pool.insert(token);
    }
    if (std::set<int32_t>(key.begin(), key.end()).size() != n) return "a token twice in one key";
    if (!value_of.emplace(std::vector<int32_t>(key.begin(), key.end()), inputs[at + n]).second) return "key twice";
    if (inputs[at + n] < half || inputs[at + n] >= config.vocab_size) return "value out of range";
    if (!values.insert(inputs[at + n]).second) return "value twice";
  }
  std::set<std::vector<int32_t>> queried;
  size_t scored = 0, filler = 0;
  for (size_t at = 0; at < inputs.size(); ++at) {
    filler += inputs[at] == 0;
    if (targets[at] == kIgnoredTarget) continue;
    ++scored;
    if (at + 1 < context + n) return "target among the pairs";
    if ((at + 1 - n - context) % (n + 1) != 0) return "query between slots";
    const std::vector<int32_t> query(&inputs[at + 1 - n], &inputs[at] + 1);
    const auto known = value_of.find(query);
    if (known == value_of.end()) return "query of no key";
    if (known->second != targets[at]) return "target is not the key's value";
    if (occurrences(inputs.first(context), query).size() != 1) return "query stands more than once among the pairs";
    if (!queried.insert(query).second) return "key queried twice";
  }
  if (scored != value_of.size()) return "key not queried";
  return filler == inputs.size() - context - n * scored ? "" : "filler is not 0";
}

/// The first finding of `check` over examples of the task, at all lengths in turn.
template <class Check>
std::string first_fault(const TaskConfig& config, int64_t examples, const Check& check) {
  const auto task = make_task(config);
  for (int64_t seq_len = task->shape().first_seq_len; seq_len <= config.seq_len; seq_len += 1 + seq_len / 2) {
    Batch batch;
    make_batch(*task, Split::train, 0, examples, seq_len, 2, batch);
    for (int64_t i = 0; i < examples; ++i) {
      const std::string fault = check(Tokens(batch.inputs).subspan(i * seq_len, seq_len),
                                      Tokens(batch.targets).subspan(i * seq_len, seq_len));
      if (!fault.empty()) return fault + " at length " + std::to_string(seq_len);
    }
  }
  return "";
}

}  // namespace

TEST_CASE("nar: an oracle solves every example, at every length") {
  for (const TaskConfig& config :
       {ngram_recall("free", 2, 128, 256), ngram_recall("free", 3, 300, 7), ngram_recall("free", 1, 64, 64),
        ngram_recall("free", 7, 100, 2), ngram_recall("free", 2, 5, 3), ngram_recall("pairs", 2, 128, 8192),
        ngram_recall("pairs", 2, 129, 16), ngram_recall("pairs", 3, 64, 8), ngram_recall("pairs", 1, 15, 16)}) {
    CAPTURE(config.form);
    CAPTURE(config.n_gram);
    CAPTURE(config.seq_len);
    const auto n = static_cast<size_t>(config.n_gram);
    CHECK(first_fault(config, 500, [&](Tokens inputs, Tokens targets) {
            const std::string fault = solve(n, inputs, targets, config.vocab_size);
            return fault.empty() && config.form == "pairs" ? check_pairs(n, inputs, config.vocab_size) : fault;
          }) == "");
  }
}

TEST_CASE("nar free: every sequence of the definition is equally likely") {
  constexpr int64_t kLength = 6, kVocabulary = 3;
  const TaskConfig config = ngram_recall("free", 2, kLength, kVocabulary);
  std::map<std::vector<int32_t>, double> counts;
  std::vector<int32_t> tokens(kLength);
  for (int64_t code = 0; code < 729; ++code) {
    for (int64_t at = 0, rest = code; at < kLength; ++at, rest /= kVocabulary)
      tokens[at] = static_cast<int32_t>(rest % kVocabulary);
    const std::vector<size_t> places = occurrences(Tokens(tokens).first(kLength - 1), Tokens(tokens).last(2));
    if (places.size() == 1 && places[0] < 2) counts[tokens] = 0;
  }
  const auto task = make_task(config);
  std::vector<int32_t> targets(kLength);
  for (int64_t i = 0; i < 20'000; ++i) {
    task->make(Split::train, i, kLength, tokens, targets);
    REQUIRE(counts.contains(tokens));
    ++counts[tokens];
  }
  std::vector<double> drawn;
  for (const auto& [sequence, count] : counts) drawn.push_back(count);
  CHECK(test::fits_law(drawn, std::vector<double>(drawn.size(), 1.0 / static_cast<double>(drawn.size()))));
}

TEST_CASE("mqnar: an oracle solves every example, at every length") {
  for (const TaskConfig& config : {multi_query(2, 128, 8), multi_query(3, 128, 8), multi_query(2, 64, 10, 20),
                                   multi_query(1, 64, 16), multi_query(2, 6, 1), multi_query(5, 256, 16)}) {
    CAPTURE(config.n_gram);
    CAPTURE(config.seq_len);
    CAPTURE(config.num_kv_pairs);
    CHECK(first_fault(config, 1000,
                      [&](Tokens inputs, Tokens targets) { return solve_multi_query(config, inputs, targets); }) == "");
  }
}

TEST_CASE("mqnar: keys share so few tokens that no single one tells them apart") {
  // The smallest pool for 8 bigrams without a repeated token is 4 (12 of them); for 13, which is more, 5.
  for (const auto& [pairs, tokens] : {std::pair<int64_t, size_t>{8, 4}, {12, 5}, {13, 5}, {20, 6}}) {
    const auto task = make_task(multi_query(2, 256, pairs));
    std::vector<int32_t> inputs(256), targets(256);
    size_t most = 0;
    for (int64_t i = 0; i < 200; ++i) {
      task->make(Split::train, i, 256, inputs, targets);
      std::set<int32_t> seen;
      for (int64_t at = 0; at < 3 * pairs; ++at)
        if (at % 3 != 2) seen.insert(inputs[at]);
      most = std::max(most, seen.size());
    }
    CHECK(most == tokens);
  }
}

TEST_CASE("nar, mqnar: sizes that do not fit name the key") {
  const auto message = [](const TaskConfig& config) -> std::string {
    try {
      make_task(config);
      return "no error";
    } catch (const ConfigError& error) {
      return error.what();
    }
  };
  CHECK(message(ngram_recall("free", 3, 6, 256)) ==
        "task.seq_len of nar must be at least 7 for task.n_gram = 3, got 6");
  CHECK(message(ngram_recall("free", 2, 128, 11)) ==
        "task.vocab_size of nar in form \"free\" must allow 128 keys of task.n_gram = 2 tokens each, got 11");
  CHECK(message(ngram_recall("free", 2, 128, 12)) == "no error");
  CHECK(message(ngram_recall("pairs", 1, 17, 17)) ==
        "task.vocab_size of nar in form \"pairs\" must allow 8 keys of task.n_gram = 1 tokens each, got 17");
  CHECK(message(multi_query(2, 64, 11)) ==
        "task.num_kv_pairs of mqnar must be at most 10 for task.seq_len = 64 and task.n_gram = 2, got 11");
  CHECK(message(multi_query(2, 64, 10, 19)) ==
        "task.vocab_size of mqnar must be at least 20 for task.num_kv_pairs = 10 and task.n_gram = 2, got 19");
}
