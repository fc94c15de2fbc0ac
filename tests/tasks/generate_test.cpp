#include "tasks/generate.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "engine/error.h"

using namespace margay;

namespace {

constexpr int kDraws = 20'000;

std::vector<double> frequencies(const std::vector<float>& logits, const SampleOptions& options) {
  RandomStream random(1, 2);
  std::vector<double> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) counts[sample_token(logits, options, random)] += 1.0 / kDraws;
  return counts;
}

std::set<int32_t> drawn(const std::vector<float>& logits, const SampleOptions& options) {
  std::set<int32_t> tokens;
  RandomStream random(1, 2);
  for (int i = 0; i < kDraws; ++i) tokens.insert(sample_token(logits, options, random));
  return tokens;
}

const std::vector<float> kLogits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};

}  // namespace

TEST_CASE("sample_token: draws from the softmax") {
  const std::vector<double> got = frequencies(kLogits, {});
  const std::vector<double> wanted = {0.1, 0.4, 0.2, 0.3};
  for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == doctest::Approx(wanted[i]).epsilon(0.08));
}

TEST_CASE("sample_token: temperature sharpens; 0 takes the likeliest, the first of equals") {
  const std::vector<double> sharp = frequencies(kLogits, {.temperature = 0.5});
  CHECK(sharp[1] == doctest::Approx(0.16 / 0.30).epsilon(0.05));
  CHECK(drawn(kLogits, {.temperature = 0}) == std::set<int32_t>{1});
  CHECK(drawn({1, 3, 3}, {.temperature = 0}) == std::set<int32_t>{1});
}

TEST_CASE("sample_token: top-k and top-p keep the likeliest") {
  CHECK(drawn(kLogits, {.top_k = 1}) == std::set<int32_t>{1});
  CHECK(drawn(kLogits, {.top_k = 2}) == std::set<int32_t>{1, 3});
  CHECK(drawn(kLogits, {.top_k = 100}).size() == 4);
  CHECK(drawn(kLogits, {.top_p = 0}) == std::set<int32_t>{1});
  CHECK(drawn(kLogits, {.top_p = 0.39}) == std::set<int32_t>{1});
  CHECK(drawn(kLogits, {.top_p = 0.6}) == std::set<int32_t>{1, 3});
  CHECK(drawn(kLogits, {.top_p = 0.85}) == std::set<int32_t>{1, 2, 3});
  CHECK(drawn(kLogits, {.top_p = 1}).size() == 4);
  CHECK(drawn(kLogits, {.top_k = 3, .top_p = 0.7}) == std::set<int32_t>{1, 3});
  const std::vector<double> two = frequencies(kLogits, {.top_k = 2});
  CHECK(two[1] == doctest::Approx(4.0 / 7).epsilon(0.05));
}

TEST_CASE("sample_token: extreme logits, and those that are none") {
  CHECK(drawn({-1e30f, 1e30f, 0}, {}) == std::set<int32_t>{1});
  CHECK(drawn({5}, {}) == std::set<int32_t>{0});
  RandomStream random(1, 1);
  CHECK_THROWS_AS(sample_token(std::vector<float>{0, NAN}, {}, random), DivergedError);
  CHECK_THROWS_AS(sample_token(std::vector<float>{0, INFINITY}, {}, random), DivergedError);
  CHECK_THROWS_AS(sample_token({}, {}, random), DivergedError);
}
