// Landmark CAT: its initial weights, what its options leave alone, and the paper's retrieval by one query, whose hit
// rate under random contexts is known.

#include "models/lcat.h"

#include <doctest/doctest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "models/language_model.h"
#include "ops/conv1d_causal.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

ModelConfig lcat_config() {
  ModelConfig config;
  config.mixer = {"lcat"};
  config.d_model = 32;
  config.n_heads = 2;
  config.vocab_size = 50;
  config.lcat.block_size = 4;
  return config;
}

std::vector<double> parameter(const LanguageModel& model, const std::string& name) {
  for (const Parameter& p : model.parameters())
    if (p.name == "blocks.0.mixer." + name) return p.value.detach().to(DType::f64).to_vector<double>();
  FAIL("no parameter " << name);
  return {};
}

}  // namespace

TEST_CASE("lcat: initial landmarks are sums of keys, scaled by 1 / sqrt(block_size)") {
  ModelConfig config = lcat_config();
  config.lcat.landmark_sharing = "per_head";
  config.lcat.landmark_query = config.lcat.landmark_key = true;
  const LanguageModel model(config, 5, DType::f64);
  CHECK(parameter(model, "landmark_conv.weight") == std::vector<double>(8, 0.5));
  CHECK(parameter(model, "landmark_scale") == std::vector<double>(2, 1.0));
  CHECK(parameter(model, "landmark_bias") == std::vector<double>(2, 0.0));
  for (const char* name : {"landmark_q.weight", "landmark_k.weight"}) {
    const auto values = parameter(model, name);
    REQUIRE(values.size() == 32 * 32);
    const double squares = std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
    CHECK(std::sqrt(squares / static_cast<double>(values.size())) == doctest::Approx(0.02).epsilon(0.1));
  }
}

TEST_CASE("lcat: the number of blocks and the gate change no parameter, so a dense model goes on as a sparse one") {
  ModelConfig config = lcat_config();
  config.lcat.top_k = 0;
  const LanguageModel dense(config, 5);
  config.lcat.top_k = 2;
  config.lcat.gate = "additive";
  const LanguageModel sparse(config, 5);
  REQUIRE(dense.parameters().size() == sparse.parameters().size());
  for (size_t i = 0; i < dense.parameters().size(); ++i) {
    CHECK(dense.parameters()[i].name == sparse.parameters()[i].name);
    CHECK(same_bits(dense.parameters()[i].value, sparse.parameters()[i].value));
  }
}

TEST_CASE("lcat: as many blocks as there are is all of them, to the bit") {
  const NoGrad no_grad;
  const Tensor ids =
      from_function({2, 41}, DType::i32, [](const Index& at) { return (at[0] * 7 + at[1] * at[1]) % 50; });
  for (const char* gate : {"grouped", "additive", "none"}) {
    ModelConfig config = lcat_config();
    config.lcat.gate = gate;
    config.lcat.top_k = 0;
    const Tensor dense = LanguageModel(config, 5).logits(ids);
    for (const int64_t top_k : {10, 1000}) {
      config.lcat.top_k = top_k;
      CHECK(same_bits(LanguageModel(config, 5).logits(ids), dense));
    }
    config.lcat.top_k = 1;
    CHECK_FALSE(same_bits(LanguageModel(config, 5).logits(ids), dense));
  }
}

TEST_CASE("lcat: dropout of attention acts in training only") {
  ModelConfig config = lcat_config();
  config.dropout_attention = 0.4;
  const LanguageModel model(config, 5);
  const Tensor ids = from_function({1, 30}, DType::i32, [](const Index& at) { return at[1] * at[1] % 50; });
  const auto loss = [&](int64_t step) {
    const Tensor rows = from_values<int32_t>({20, 29}, {2}), targets = from_values<int32_t>({1, 2}, {2});
    return model.loss(ids, rows, targets, step < 0 ? Tensor() : from_values<int64_t>({17, step}, {2})).loss.item();
  };
  CHECK(loss(-1) == loss(-1));
  CHECK(loss(3) == loss(3));
  CHECK(loss(3) != loss(-1));
  CHECK(loss(3) != loss(4));
}

TEST_CASE("landmark_recall attends to the block of the largest landmark and to the last one") {
  const int64_t d = 3, W = 4;
  const double scale = 1.3;
  for (const int64_t L : {1, 3, 4, 8, 13, 24}) {
    CAPTURE(L);
    const Tensor q = random_uniform({2, d}, 1), k = random_uniform({2, L, d}, 2), v = random_uniform({2, L, d}, 3);
    const Tensor landmark_q = random_uniform({2, d}, 4);
    const auto [y, block] = landmark_recall(q, k, v, landmark_q, W, scale);
    const Elements eq(q), ek(k), ev(v), elq(landmark_q);
    const int64_t blocks = (L + W - 1) / W, missing = blocks * W - L;
    const auto row = [&](const Elements& x, int64_t b, int64_t j, int64_t c) {
      return j < missing ? 0.0 : x({b, j - missing, c});
    };
    for (int64_t b = 0; b < 2; ++b) {
      int64_t best = -1;
      double largest = -HUGE_VAL;
      for (int64_t m = 0; m + 1 < blocks; ++m) {
        double logit = 0;
        for (int64_t j = m * W; j < (m + 1) * W; ++j)
          for (int64_t c = 0; c < d; ++c) logit += elq({b, c}) * row(ek, b, j, c);
        if (logit > largest) largest = logit, best = m;
      }
      CHECK(block.to_vector<int32_t>()[static_cast<size_t>(b)] == best);
      std::vector<double> expected(static_cast<size_t>(d), 0.0);
      double total = 0;
      for (int64_t j = 0; j < blocks * W; ++j) {
        if (j / W != best && j / W != blocks - 1) continue;
        double score = 0;
        for (int64_t c = 0; c < d; ++c) score += scale * eq({b, c}) * row(ek, b, j, c);
        total += std::exp(score);
        for (int64_t c = 0; c < d; ++c) expected[static_cast<size_t>(c)] += std::exp(score) * row(ev, b, j, c);
      }
      for (double& value : expected) value /= total;
      CHECK(difference(select(y, 0, b), from_values(expected, {d}), 1e-13) == "");
    }
  }
}

TEST_CASE("landmark_recall says what is wrong with its arguments") {
  const Tensor q = zeros({2, 3}), k = zeros({2, 8, 3});
  CHECK(op_error([&] { landmark_recall(q, k, k, {}, 0, 1); }) != "");
  CHECK(op_error([&] { landmark_recall(q, k, zeros({2, 7, 3}), {}, 4, 1); }) != "");
  CHECK(op_error([&] { landmark_recall(zeros({2, 4}), k, k, {}, 4, 1); }) != "");
}

namespace {

// How often the target block's logit 1 + N(0, (W-1)/d) exceeds those of M - 2 others, N(0, W/d): by quadrature.
double expected_hit_rate(double L, double W, double d) {
  const double own = std::sqrt((W - 1) / d), other = std::sqrt(W / d), step = 0.01, pi = std::acos(-1.0);
  double rate = 0;
  for (double z = -8; z < 8; z += step) {
    const double below = 0.5 * std::erfc(-(1 + own * z) / other / std::sqrt(2.0));
    rate += step * std::exp(-z * z / 2) / std::sqrt(2 * pi) * std::pow(below, L / W - 2);
  }
  return rate;
}

struct Outcome {
  int64_t hits = 0;   // the right block was retrieved
  int64_t found = 0;  // and the output is nearest to the token that is wanted
};

// The random context model: rows N(0, I/d) but for a unit row q somewhere and at the end; wanted is the row after q's
// first place. Keys are the rows, delayed by one: that row's own key is q, so it lies in the block of the match.
Outcome recall_in_random_contexts(int64_t L, int64_t W, int64_t d, int64_t trials) {
  const NoGrad no_grad;
  const double bound = std::sqrt(3.0 / static_cast<double>(d));  // variance 1/d
  const Tensor x = random_uniform({trials, L, d}, 21, -bound, bound, DType::f32);
  const Tensor q = random_uniform({trials, d}, 22, -1, 1, DType::f32);
  RandomStream random(23, 0);
  std::vector<int64_t> wanted;
  for (int64_t n = 0; n < trials; ++n) {
    float* const query = q.data<float>() + n * d;
    const float norm = std::sqrt(std::inner_product(query, query + d, query, 0.0f));
    for (int64_t c = 0; c < d; ++c) query[c] /= norm;
    wanted.push_back(1 + random.below(static_cast<uint32_t>(L - W - 1)));
    for (const int64_t place : {wanted.back() - 1, L - 1}) std::copy_n(query, d, x.data<float>() + (n * L + place) * d);
  }
  const Tensor keys = conv1d_causal(x, from_values<float>({0, 1}, {2}));
  const auto [y, block] = landmark_recall(q, keys, x, {}, W, 100);
  Outcome outcome;
  for (int64_t n = 0; n < trials; ++n) {
    const int64_t target = wanted[static_cast<size_t>(n)];
    if (block.data<int32_t>()[n] != target / W) continue;
    ++outcome.hits;
    const float *const output = y.data<float>() + n * d, *const rows = x.data<float>() + n * L * d;
    const auto distance = [&](int64_t j) {
      double sum = 0;
      for (int64_t c = 0; c < d; ++c) sum += std::pow(rows[j * d + c] - output[c], 2);
      return sum;
    };
    bool nearest = true;
    for (int64_t j = 0; j < L; ++j) nearest = nearest && (j == target || distance(j) > distance(target));
    outcome.found += nearest;
  }
  return outcome;
}

}  // namespace

TEST_CASE("landmark_recall hits the right block as often as the width of the embeddings lets it") {
  CHECK(expected_hit_rate(4096, 16, 64) == doctest::Approx(0.216).epsilon(0.01));
  CHECK(expected_hit_rate(4096, 16, 128) == doctest::Approx(0.506).epsilon(0.01));
  CHECK(expected_hit_rate(4096, 64, 352) == doctest::Approx(0.508).epsilon(0.01));
  for (const auto& [L, W, d, trials] :
       {std::array<int64_t, 4>{1024, 16, 32, 100}, {1024, 16, 96, 100}, {512, 8, 128, 60}}) {
    CAPTURE(d);
    const Outcome outcome = recall_in_random_contexts(L, W, d, trials);
    const double rate = expected_hit_rate(static_cast<double>(L), static_cast<double>(W), static_cast<double>(d));
    const auto count = static_cast<double>(trials);
    CHECK(std::abs(static_cast<double>(outcome.hits) / count - rate) <
          3 * std::sqrt(rate * (1 - rate) / count) + 1 / count);
    // Inside the block, attention finds the token itself: what is lost is lost at the choice.
    CHECK(outcome.found == outcome.hits);
    CHECK(outcome.hits > 0);
  }
}

}  // namespace margay::test
