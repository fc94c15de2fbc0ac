#include "tasks/random_context.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

#include "engine/autograd.h"
#include "engine/error.h"
#include "ops/argmax.h"
#include "ops/concat.h"
#include "ops/conv1d_causal.h"
#include "ops/matmul.h"
#include "ops/softmax.h"
#include "ops/view.h"
#include "tests/tasks/train/tiny_run.h"

using namespace margay;

namespace {

/// P(N(0, 1) <= z).
double normal_cdf(double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); }

/// The success rate of a fixed query, by quadrature over the target's noise.
double exact_rate(const LandmarkLaw& law, double d) {
  const double tokens = static_cast<double>(law.block_size), own = std::sqrt(law.variance * (tokens - 1) / d);
  const double others = std::sqrt(law.variance * tokens / d), competitors = static_cast<double>(law.blocks - 2);
  double rate = 0;
  constexpr double step = 1e-3;
  for (double z = -9; z < 9; z += step) {
    const double density = std::exp(-0.5 * z * z) / std::sqrt(2 * std::numbers::pi);
    rate += step * density * std::pow(normal_cdf((1 + own * z) / others), competitors);
  }
  return rate;
}

double rate_at(const std::vector<double>& needed, double d) {
  const auto right = std::count_if(needed.begin(), needed.end(), [d](double dimension) { return dimension < d; });
  return static_cast<double>(right) / static_cast<double>(needed.size());
}

std::vector<double> draws_of(const LandmarkLaw& law, int64_t draws) {
  std::vector<double> needed;
  append_needed_dimensions(law, draws, 7, needed);
  return needed;
}

/// Three standard errors of a rate from so many draws.
double three_errors(double rate, double draws) { return 3 * std::sqrt(rate * (1 - rate) / draws); }

/// Where the query stood before the end: the only row that equals the last one.
int64_t place_of(const RandomContext& context) {
  for (int64_t i = 0; i + 1 < context.seq_len; ++i) {
    if (std::ranges::equal(context.row(i), context.query())) return i;
  }
  return -1;
}

/// The share of `trials` direct simulations in which the landmarks choose the block of the query.
double direct_rate(int64_t seq_len, int64_t block_size, int64_t d_model, int64_t trials) {
  int64_t right = 0;
  for (int64_t trial = 0; trial < trials; ++trial) {
    const RandomContext context = make_random_context({seq_len, d_model}, trial, seq_len - block_size);
    right += landmark_choice(context, block_size) == context.place / block_size;
  }
  return static_cast<double>(right) / static_cast<double>(trials);
}

}  // namespace

TEST_CASE("random context: the oracle finds the query; the other rows have the law of the model") {
  const RandomContextModel model{.seq_len = 200, .d_model = 48, .variance = 2.5};
  std::vector<bool> seen(100);
  for (int64_t index = 0; index < 300; ++index) {
    const RandomContext context = make_random_context(model, index, 100);
    CHECK(place_of(context) == context.place);
    REQUIRE(context.place < 100);
    seen[static_cast<size_t>(context.place)] = true;
    double query = 0, others = 0, sum = 0;
    for (const float value : context.query()) query += double{value} * value;
    for (const float value : context.rows) {
      others += double{value} * value;
      sum += value;
    }
    CHECK(query == doctest::Approx(1).epsilon(1e-6));
    CHECK(std::abs((others - 2) / 198 - 2.5) < 6 * 2.5 * std::sqrt(2.0 / (198 * 48)));
    CHECK(std::abs(sum) < 6 * std::sqrt(200 * 2.5));
  }
  CHECK(std::count(seen.begin(), seen.end(), true) > 85);
  CHECK(make_random_context(model, 5, 100).rows == make_random_context(model, 5, 100).rows);
  CHECK(make_random_context(model, 5, 100).rows != make_random_context(model, 6, 100).rows);
}

TEST_CASE("random context: sizes that make no sense are errors") {
  CHECK_THROWS_AS(make_random_context({.seq_len = 1}, 0, 1), ConfigError);
  CHECK_THROWS_AS(make_random_context({.seq_len = 8, .d_model = 0}, 0, 1), ConfigError);
  CHECK_THROWS_AS(make_random_context({.seq_len = 8}, 0, 8), ConfigError);
  const RandomContext context = make_random_context({.seq_len = 8, .d_model = 2}, 0, 7);
  for (const int64_t block_size : {0, 3, 8}) CHECK_THROWS_AS(landmark_choice(context, block_size), ConfigError);
  RandomStream random(1, 1);
  CHECK_THROWS_AS(draw_needed_dimension({.blocks = 1, .block_size = 4}, random), ConfigError);
  CHECK_THROWS_AS(draw_needed_dimension({.blocks = 8, .block_size = 0}, random), ConfigError);
  CHECK_THROWS_AS(draw_needed_dimension({.blocks = 8, .block_size = 4, .query_dims = -1}, random), ConfigError);
  CHECK(draw_needed_dimension({.blocks = 2, .block_size = 4}, random) == 0);  // nothing competes
}

TEST_CASE("random context: normal quantiles and maxima") {
  for (const double p : {1e-300, 1e-12, 1e-5, 0.025, 0.3, 0.5, 0.7, 0.999}) {
    CHECK(0.5 * std::erfc(normal_upper_quantile(p) / std::numbers::sqrt2) == doctest::Approx(p).epsilon(1e-11));
  }
  CHECK(normal_upper_quantile(0.025) == doctest::Approx(1.959963984540054).epsilon(1e-13));
  RandomStream random(3, 1);
  constexpr int64_t draws = 4000;
  int64_t drawn = 0, listed = 0;  // below the median of the maximum of 9: by inverse CDF, and one by one
  const double median = normal_upper_quantile(1 - std::pow(0.5, 1.0 / 9));
  for (int64_t i = 0; i < draws; ++i) {
    drawn += draw_normal_maximum(9, random) < median;
    double largest = random.normal();
    for (int64_t j = 1; j < 9; ++j) largest = std::max(largest, random.normal());
    listed += largest < median;
  }
  CHECK(std::abs(static_cast<double>(drawn) / draws - 0.5) < three_errors(0.5, draws));
  CHECK(std::abs(static_cast<double>(listed) / draws - 0.5) < three_errors(0.5, draws));
}

TEST_CASE("random context: direct simulation of the block choice has the rate of the law") {
  struct Case {
    int64_t seq_len, block_size, d_model, trials;
  };
  for (const auto& [seq_len, block_size, d_model, trials] :
       {Case{512, 8, 32, 200}, Case{256, 16, 64, 200}, Case{1024, 16, 96, 50}, Case{64, 1, 8, 1000}}) {
    CAPTURE(seq_len);
    const double exact = exact_rate({seq_len / block_size, block_size}, static_cast<double>(d_model));
    const double errors = three_errors(exact, static_cast<double>(trials));
    CHECK(std::abs(direct_rate(seq_len, block_size, d_model, trials) - exact) < errors);
  }
}

TEST_CASE("random context: draws of the law have its rates, as measured before") {
  struct Known {
    int64_t seq_len, block_size;
    double d, rate;
  };
  constexpr double l20 = 1048576;
  for (const auto& [seq_len, block_size, d, rate] : {Known{4096, 16, 64, 0.216},
                                                     {4096, 16, 128, 0.506},
                                                     {4096, 64, 352, 0.508},
                                                     {1 << 14, 64, 504, 0.5},
                                                     {1 << 16, 64, 674, 0.5},
                                                     {1 << 20, 64, 453, 0.1},
                                                     {1 << 20, 64, 997, 0.5},
                                                     {1 << 20, 1024, 3618, 0.1},
                                                     {1 << 20, 1024, 10702, 0.5},
                                                     {1 << 20, 16384, 14200, 0.1},
                                                     {1 << 20, 16384, 88640, 0.5},
                                                     {1 << 20, 256, 2 * 256 * std::log(l20 / 256), 0.68}}) {
    CAPTURE(block_size);
    CAPTURE(d);
    constexpr int64_t draws = 4000;
    const LandmarkLaw law{seq_len / block_size, block_size};
    const double exact = exact_rate(law, d);
    CHECK(std::abs(exact - rate) < 0.015);  // of the known rates, themselves from simulations
    CHECK(std::abs(rate_at(draws_of(law, draws), d) - exact) < three_errors(exact, draws));
  }
}

TEST_CASE("random context: the noise scales the dimension; the sufficient dimension suffices") {
  const LandmarkLaw law{256, 64};
  for (const double variance : {0.25, 4.0}) {
    const LandmarkLaw scaled{256, 64, variance};
    const std::vector<double> needed = draws_of(law, 50), more = draws_of(scaled, 50);
    for (size_t i = 0; i < needed.size(); ++i) CHECK(more[i] == doctest::Approx(variance * needed[i]));
  }
  CHECK(exact_rate(law, sufficient_dimension(law, 0.1)) == doctest::Approx(0.993).epsilon(0.003));
  CHECK(exact_rate(law, sufficient_dimension(law, 0.01)) > 0.999);
  CHECK(std::abs(rate_at(draws_of(law, 4000), sufficient_dimension(law, 0.1)) - 0.993) < three_errors(0.993, 4000));
  CHECK(predicted_dimension(law) == doctest::Approx(2 * 64 * std::log(256.0)));
}

TEST_CASE("random context: all queries of a space at once") {
  constexpr int64_t draws = 1000;
  const double errors = std::sqrt(2.0) * three_errors(0.5, draws);  // of this rate, and of the known dimension's
  struct Known {
    int64_t blocks, dims;
    double half;  // d_50 / B
  };
  for (const auto& [blocks, dims, half] : {Known{256, 1, 12.7}, {256, 4, 26.2}, {256, 16, 64.4}, {256, 64, 187.5}}) {
    CAPTURE(dims);
    const LandmarkLaw law{.blocks = blocks, .block_size = 64, .query_dims = dims};
    CHECK(std::abs(rate_at(draws_of(law, draws), 64 * half) - 0.5) < errors);
    const double ratio = 64 * half / predicted_dimension(law);
    CHECK(ratio > 0.55);
    CHECK(ratio < 0.88);
  }
  // Against vectors drawn one by one.
  const LandmarkLaw law{.blocks = 12, .block_size = 5, .query_dims = 3};
  RandomStream random(11, 2);
  std::vector<double> direct;
  for (int64_t i = 0; i < draws; ++i) {
    double target[3], largest = 0;
    for (double& value : target) value = std::sqrt(4.0) * random.normal();
    for (int64_t block = 0; block < 10; ++block) {
      double squared = 0;
      for (const double value : target) {
        const double difference = std::sqrt(5.0) * random.normal() - value;
        squared += difference * difference;
      }
      largest = std::max(largest, squared);
    }
    direct.push_back(largest);
  }
  std::sort(direct.begin(), direct.end());
  for (const double share : {0.1, 0.5, 0.9}) {
    const double rate = rate_at(draws_of(law, draws), direct[static_cast<size_t>(share * draws)]);
    CHECK(std::abs(rate - share) < std::sqrt(2.0) * three_errors(share, draws));
  }
}

TEST_CASE("random context: the choice through ops, and a whole single-query LCAT on delayed keys") {
  const NoGrad no_grad;
  const test::Threads one_thread(1);
  constexpr int64_t length = 256, block = 16, d = 256, blocks = length / block;
  constexpr double sharpness = 60;
  int64_t hits = 0, answers = 0;
  constexpr int64_t trials = 40;
  for (int64_t trial = 0; trial < trials; ++trial) {
    const RandomContext context = make_random_context({length, d}, trial, length - block - 1);
    const Tensor x = from_values(context.rows, {1, length, d});
    const Tensor query = reshape(select(x, 1, length - 1), {d, 1});
    // The long filter of ones, read at the end of each block; the last block is no candidate.
    const auto choice = [&](const Tensor& keys) {
      const Tensor sums = conv1d_causal(keys, ones({block}));
      const Tensor landmarks = slice(reshape(sums, {length, d}), 0, block - 1, length - block, block);
      return int64_t{argmax(reshape(matmul(landmarks, query), {blocks - 1}), 0).to_vector<int32_t>()[0]};
    };
    CHECK(choice(x) == landmark_choice(context, block));

    // Keys one token late, so that a key's value is the token after it: a match at a block's end points into the block.
    const Tensor keys = conv1d_causal(x, from_values<float>({0, 1}, {2}));
    const int64_t chosen = choice(keys);
    hits += chosen == (context.place + 1) / block;
    const auto rows_of = [&](const Tensor& all) {
      const Tensor flat = reshape(all, {length, d});
      const Tensor parts[] = {slice(flat, 0, chosen * block, (chosen + 1) * block),
                              slice(flat, 0, length - block, length)};
      return concat(parts, 0);
    };
    const Tensor scaled = matmul(query, full({1, 1}, sharpness));
    const Tensor weights = softmax(reshape(matmul(rows_of(keys), scaled), {1, 2 * block}));
    const std::vector<float> output = matmul(weights, rows_of(x)).to_vector<float>();
    double distance = 0;
    for (size_t c = 0; c < output.size(); ++c) {
      const double difference = output[c] - context.row(context.place + 1)[c];
      distance += difference * difference;
    }
    answers += distance < 0.25;
  }
  CHECK(answers == hits);
  const double exact = exact_rate({blocks, block}, d);
  CHECK(std::abs(static_cast<double>(hits) / trials - exact) < three_errors(exact, trials));
}
