#include "tasks/generate/sampler.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <vector>

#include "engine/error.h"
#include "tests/support/chi_square.h"

using namespace margay;

namespace {

constexpr int kDraws = 20'000;

std::vector<double> counts_of(const std::vector<float>& logits, const SampleOptions& options,
                              const std::vector<int32_t>& before = {}) {
  RandomStream random(1, 2);
  Sampler sampler(options);
  std::vector<double> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.draw(logits, before, random)];
  return counts;
}

std::set<int32_t> drawn(const std::vector<float>& logits, const SampleOptions& options,
                        const std::vector<int32_t>& before = {}) {
  const std::vector<double> counts = counts_of(logits, options, before);
  std::set<int32_t> tokens;
  for (size_t i = 0; i < counts.size(); ++i)
    if (counts[i] > 0) tokens.insert(static_cast<int32_t>(i));
  return tokens;
}

/// The law of a draw, step by step from the options' definitions.
std::vector<double> naive_law(std::vector<double> scores, const SampleOptions& options) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  if (options.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(options.top_k)));
  const auto law_of_kept = [&] {
    std::vector<double> law(scores.size(), 0.0);
    double sum = 0;
    for (const int32_t token : order) sum += law[token] = std::exp(scores[token] / options.temperature);
    for (double& probability : law) probability /= sum;
    return law;
  };
  const std::vector<double> before = law_of_kept();
  double sum = 0;
  size_t kept = 0;
  while (kept < order.size() && (kept == 0 || sum < options.top_p)) sum += before[order[kept++]];
  order.resize(kept);
  std::erase_if(order, [&](int32_t token) { return before[token] < options.min_p * before[order.front()]; });
  return law_of_kept();
}

const std::vector<float> kLogits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};

}  // namespace

TEST_CASE("sampler: draws follow the law of the options, whatever they are together") {
  std::vector<float> logits;
  for (int i = 0; i < 150; ++i) logits.push_back(3 * std::sin(static_cast<float>(i * i)));
  logits[7] = logits[80] = 2.5f;  // equals on both sides of a border
  const std::vector<SampleOptions> all = {{},
                                          {.temperature = 0.5},
                                          {.top_k = 5},
                                          {.top_p = 0.5},
                                          {.temperature = 3, .top_p = 0.95},  // beyond what is sorted at first
                                          {.min_p = 0.4},
                                          {.temperature = 0.7, .top_k = 20, .top_p = 0.8, .min_p = 0.1}};
  for (const SampleOptions& options : all) {
    CAPTURE(options.temperature);
    CAPTURE(options.top_k);
    CAPTURE(options.top_p);
    CAPTURE(options.min_p);
    CHECK(test::fits_law(counts_of(logits, options), naive_law({logits.begin(), logits.end()}, options)));
  }
}

TEST_CASE("sampler: temperature 0 takes the likeliest, the first of equals") {
  CHECK(drawn(kLogits, {.temperature = 0}) == std::set<int32_t>{1});
  CHECK(drawn({1, 3, 3}, {.temperature = 0}) == std::set<int32_t>{1});
  CHECK(drawn({1, 3, 2}, {.temperature = 1e-300}) == std::set<int32_t>{1});
  CHECK(drawn({1, 3, 2}, {.temperature = INFINITY}).size() == 3);
}

TEST_CASE("sampler: top-k, top-p and min-p keep the likeliest") {
  CHECK(drawn(kLogits, {.top_k = 1}) == std::set<int32_t>{1});
  CHECK(drawn(kLogits, {.top_k = 2}) == std::set<int32_t>{1, 3});
  CHECK(drawn(kLogits, {.top_k = 100}).size() == 4);
  CHECK(drawn({1, 1, 1}, {.top_k = 2}) == std::set<int32_t>{0, 1});
  CHECK(drawn(kLogits, {.top_p = 0}) == std::set<int32_t>{1});
  CHECK(drawn(kLogits, {.top_p = 0.39}) == std::set<int32_t>{1});
  CHECK(drawn(kLogits, {.top_p = 0.6}) == std::set<int32_t>{1, 3});
  CHECK(drawn(kLogits, {.top_p = 0.85}) == std::set<int32_t>{1, 2, 3});
  CHECK(drawn(kLogits, {.top_p = 1}).size() == 4);
  CHECK(drawn(kLogits, {.top_k = 3, .top_p = 0.7}) == std::set<int32_t>{1, 3});
  CHECK(drawn(kLogits, {.min_p = 0.7}) == std::set<int32_t>{1, 3});
  CHECK(drawn(kLogits, {.min_p = 1}) == std::set<int32_t>{1});
}

TEST_CASE("sampler: the repetition penalty counts a token once, and makes it less likely on both sides of 0") {
  const SampleOptions greedy{.repetition_penalty = 2, .temperature = 0};
  CHECK(drawn({4, 3, 1}, greedy, {}) == std::set<int32_t>{0});
  CHECK(drawn({4, 3, 1}, greedy, {0}) == std::set<int32_t>{1});          // 2 < 3
  CHECK(drawn({4, 1.5, 1}, greedy, {0, 0, 0}) == std::set<int32_t>{0});  // 2, not 0.5
  CHECK(drawn({-4, -5, -9}, greedy, {0}) == std::set<int32_t>{1});       // -8 < -5
  const std::vector<double> counts = counts_of({2, 1}, {.repetition_penalty = 4}, {0});
  const double odds = std::exp(0.5 - 1);
  CHECK(test::fits_law(counts, {odds / (1 + odds), 1 / (1 + odds)}));
}

TEST_CASE("sampler: one uniform number a draw, so streams stay in step") {
  RandomStream a(1, 2), b(1, 2);
  Sampler wide({}), narrow({.top_k = 1});
  wide.draw(kLogits, {}, a);
  narrow.draw(kLogits, {}, b);
  CHECK(a.bits64() == b.bits64());
}

TEST_CASE("sampler: extreme logits, and those that are none") {
  CHECK(drawn({-1e30f, 1e30f, 0}, {}) == std::set<int32_t>{1});
  CHECK(drawn({-3e38f, 3e38f, 0}, {.repetition_penalty = 10}, {1}) == std::set<int32_t>{1});
  CHECK(drawn({5}, {}) == std::set<int32_t>{0});
  RandomStream random(1, 1);
  Sampler sampler({});
  CHECK_THROWS_AS(sampler.draw(std::vector<float>{0, NAN}, {}, random), DivergedError);
  CHECK_THROWS_AS(sampler.draw(std::vector<float>{0, INFINITY}, {}, random), DivergedError);
  CHECK_THROWS_AS(sampler.draw({}, {}, random), DivergedError);
}

TEST_CASE("sampler: options out of range are named") {
  const auto message = [](const SampleOptions& options) -> std::string {
    try {
      validate(options);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(message({}).empty());
  CHECK(message({.repetition_penalty = 0}).starts_with("repetition_penalty must be"));
  CHECK(message({.temperature = -1}).starts_with("temperature must be"));
  CHECK(message({.temperature = NAN}).starts_with("temperature must be"));
  CHECK(message({.top_k = -1}).starts_with("top_k must be"));
  CHECK(message({.top_p = 1.5}).starts_with("top_p must be"));
  CHECK(message({.min_p = -0.1}) == "min_p must be from 0 to 1, got -0.1");
}
