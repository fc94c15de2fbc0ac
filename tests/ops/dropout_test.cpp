#include "ops/dropout.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

Tensor rng(int64_t seed, int64_t step) { return from_values<int64_t>({seed, step}, {2}); }

// Share of positions at which two results agree in what they dropped.
double agreement(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector<float>(), y = b.to_vector<float>();
  double equal = 0;
  for (size_t i = 0; i < x.size(); ++i) equal += (x[i] == 0) == (y[i] == 0);
  return equal / static_cast<double>(x.size());
}

}  // namespace

TEST_CASE("dropout follows DropoutMask element by element") {
  for (const int64_t seed : {int64_t{1}, int64_t{-5}, int64_t{1} << 40}) {
    for (const int64_t count : {1, 63, 64, 65, 100003}) {
      const Tensor x = random_uniform({count}, 1, 1, 2, DType::f32), state = rng(seed, 12);
      const DropoutMask mask = DropoutMask::make(state.data<int64_t>(), 77, 0.3);
      const auto input = x.to_vector<float>(), output = dropout(x, 0.3, state, 77).to_vector<float>();
      bool same = true;
      for (size_t i = 0; i < input.size(); ++i) {
        const uint32_t word = philox(mask.seed, mask.counter_high, i / 4).word[i % 4];
        const bool kept = static_cast<double>(uniform_from_bits(word)) >= 0.3;
        same &= kept == mask.keeps_element(i);
        same &= std::abs(output[i] - (kept ? input[i] / 0.7f : 0)) < 1e-6f;
      }
      CHECK(same);
    }
  }
}

TEST_CASE("dropout keeps the right share, independently for every seed, step and stream") {
  const Tensor x = ones({200000});
  for (const double p : {0.1, 0.5, 0.9}) {
    double kept = 0;
    for (const float y : dropout(x, p, rng(1, 2), 3).to_vector<float>()) kept += y != 0;
    const double expected = 200000 * (1 - p), deviation = std::sqrt(200000 * p * (1 - p));
    CHECK(std::abs(kept - expected) < 5 * deviation);
  }
  const Tensor y = dropout(x, 0.5, rng(1, 2), 3);
  CHECK(agreement(y, dropout(x, 0.5, rng(1, 2), 3)) == 1);
  for (const Tensor& other : {dropout(x, 0.5, rng(2, 2), 3), dropout(x, 0.5, rng(1, 3), 3),
                              dropout(x, 0.5, rng(1, 2), 4), dropout(x, 0.5, rng(1, 3), 2)})
    CHECK(std::abs(agreement(y, other) - 0.5) < 0.01);
}

TEST_CASE("dropout: the gradient has the mask of the forward pass") {
  Tensor x = random_uniform({50, 30}, 1, 1, 2, DType::f32);
  x.set_requires_grad();
  const Tensor y = dropout(x, 0.4, rng(9, 0), 1);
  y.backward(ones({50, 30}));
  const auto output = y.to_vector<float>(), gradient = x.grad().to_vector<float>();
  for (size_t i = 0; i < output.size(); ++i) CHECK(gradient[i] == (output[i] == 0 ? 0 : 1 / 0.6f));
}

TEST_CASE("dropout: what is dropped leaves nothing behind, and p = 0 is the identity") {
  const Tensor x = full({1000}, NAN);
  bool dropped = false;
  for (const float y : dropout(x, 0.5, rng(1, 1), 1).to_vector<float>()) dropped |= y == 0;
  CHECK(dropped);
  CHECK(dropout(x, 0, rng(1, 1), 1).same(x));
}

TEST_CASE("dropout: a state that moved on before the gradient is noticed") {
  Tensor x = ones({10});
  x.set_requires_grad();
  const Tensor state = rng(1, 1), y = dropout(x, 0.5, state, 1);
  state.fill(2);
  CHECK_THROWS_AS(y.backward(ones({10})), std::logic_error);
}

TEST_CASE("dropout: errors name op and argument") {
  const Tensor x = ones({2});
  CHECK(op_error([&] { dropout(x, 1, rng(1, 1), 0); }) == "dropout: p must be in [0, 1), got 1");
  CHECK(op_error([&] { dropout(x, -0.1, rng(1, 1), 0); }) == "dropout: p must be in [0, 1), got -0.1");
  CHECK(op_error([&] { dropout(x, 0.5, zeros({2}), 0); }) ==
        "dropout: rng must be i64[2] on the device of x f32[2], got f32[2]");
  CHECK(op_error([&] { dropout(zeros({2}, DType::i32), 0.5, rng(1, 1), 0); }) ==
        "dropout: x must be of a float dtype, got i32[2]");
}

}  // namespace margay::test
