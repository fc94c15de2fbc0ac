#include "ops/softmax.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

// exp(x) / sum(exp(x)) along an axis, over the elements whose mask is false.
Tensor softmax_naively(const Tensor& x, size_t axis, const Elements* mask, bool log) {
  const Elements values(x);
  const auto weight = [&](const Index& at) { return mask && (*mask)(at) != 0 ? 0.0 : std::exp(values(at)); };
  return from_function(x.shape(), DType::f64, [&](const Index& at) {
    double total = 0;
    Index other = at;
    for (other[axis] = 0; other[axis] < x.shape()[static_cast<int>(axis)]; ++other[axis]) total += weight(other);
    const double share = total == 0 ? 0 : weight(at) / total;
    return log ? std::log(share) : share;
  });
}

}  // namespace

TEST_CASE("softmax and log_softmax equal plain loops along every axis") {
  for (const Shape& shape : {Shape{4, 7, 33}, Shape{3, 1, 2}, Shape{1, 5, 1030}}) {
    const Tensor x = random_uniform(shape, 1, -8, 8, DType::f32);
    for (int axis = 0; axis < 3; ++axis) {
      CAPTURE(axis);
      CHECK(difference(softmax(x, axis), softmax_naively(x, static_cast<size_t>(axis), nullptr, false), 1e-6) == "");
      CHECK(difference(log_softmax(x, axis - 3), softmax_naively(x, static_cast<size_t>(axis), nullptr, true), 1e-6) ==
            "");
    }
    CHECK(softmax(x, 0).is_contiguous());
  }
}

TEST_CASE("softmax: large inputs and long rows") {
  const Tensor x = from_values<float>({1e4f, 1e4f - 1, -1e4f, 700, 900, 900}, {2, 3});
  const auto y = softmax(x).to_vector<float>(), log_y = log_softmax(x).to_vector<float>();
  CHECK(y[0] == doctest::Approx(1 / (1 + std::exp(-1.0))));
  CHECK(y[2] == 0);
  CHECK(log_y[2] == doctest::Approx(-2e4 - std::log1p(std::exp(-1.0))).epsilon(1e-7));
  CHECK(y[4] == 0.5f);
  const auto equal = softmax(zeros({1, 100000})).to_vector<float>();
  CHECK(equal.front() == doctest::Approx(1e-5).epsilon(1e-6));
}

TEST_CASE("masked_softmax equals softmax over the unmasked elements") {
  const Tensor x = random_uniform({2, 3, 6, 7}, 2, -4, 4, DType::f32);
  for (const Shape& shape :
       {Shape{6, 7}, Shape{2, 1, 1, 7}, Shape{7}, Shape{3, 1, 7}, Shape{2, 3, 6, 7}, Shape{6, 1}}) {
    CAPTURE(to_string(shape));
    const Tensor random = random_uniform(shape, 3);
    const auto values = random.to_vector<double>();
    Tensor mask = empty(shape, DType::boolean);
    for (size_t i = 0; i < values.size(); ++i) mask.data<bool>()[i] = values[i] > 0.2;
    const Tensor full_mask = empty(x.shape(), DType::boolean);
    full_mask.copy_from(mask.view(x.shape(), broadcast_strides(shape, mask.strides(), x.shape())));
    const Elements expanded(full_mask);
    CHECK(difference(masked_softmax(x, mask), softmax_naively(x, 3, &expanded, false), 1e-6) == "");
    CHECK(same_bits(masked_softmax(x, as_strided_copy(mask)), masked_softmax(x, mask)));
  }
}

TEST_CASE("masked_softmax: a wholly masked row has weights and gradients 0") {
  Tensor x = from_values<float>({1, 2, NAN, INFINITY}, {2, 2});
  x.set_requires_grad();
  const Tensor mask = empty({2, 2}, DType::boolean);
  for (int i = 0; i < 4; ++i) mask.data<bool>()[i] = i >= 2;
  const Tensor y = masked_softmax(x, mask);
  CHECK(y.to_vector<float>()[2] == 0);
  CHECK(y.to_vector<float>()[3] == 0);
  y.backward(from_values<float>({1, 0, 1, 2}, {2, 2}));
  CHECK(x.grad().to_vector<float>()[2] == 0);
  CHECK(x.grad().to_vector<float>()[3] == 0);
}

TEST_CASE("softmax: errors name op and argument") {
  CHECK(op_error([] { softmax(zeros({})); }) == "softmax: axis must be an axis of f32[], got -1");
  CHECK(op_error([] { log_softmax(zeros({2}, DType::i32)); }) == "log_softmax: x must be of a float dtype, got i32[2]");
  CHECK(op_error([] {
          masked_softmax(zeros({2, 3}), zeros({2, 3}));
        }) == "masked_softmax: mask must be bool on the device of x f32[2,3] and broadcastable to it, got f32[2,3]");
  CHECK(op_error([] {
          masked_softmax(zeros({3}), zeros({2, 3}, DType::boolean));
        }).starts_with("masked_softmax: mask"));
}

}  // namespace margay::test
