#include "ops/linear.h"

#include <doctest/doctest.h>

#include "engine/error.h"
#include "ops/matmul.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

struct Expected {
  std::vector<double> y, dx, dweight, dbias;
};

// y = x W^T + b and its gradients under the cotangent dy, in plain loops.
Expected naive(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& dy) {
  const auto X = x.to_vector<double>(), W = weight.to_vector<double>(), dY = dy.to_vector<double>();
  const auto b = bias.defined() ? bias.to_vector<double>() : std::vector<double>();
  const size_t N = static_cast<size_t>(weight.dim(0)), K = static_cast<size_t>(weight.dim(1)), rows = dY.size() / N;
  Expected e{std::vector<double>(rows * N), std::vector<double>(rows * K), std::vector<double>(N * K),
             std::vector<double>(N)};
  for (size_t r = 0; r < rows; ++r) {
    for (size_t n = 0; n < N; ++n) {
      double sum = b.empty() ? 0 : b[n];
      const double g = dY[r * N + n];
      for (size_t k = 0; k < K; ++k) {
        sum += X[r * K + k] * W[n * K + k];
        e.dx[r * K + k] += g * W[n * K + k];
        e.dweight[n * K + k] += g * X[r * K + k];
      }
      e.y[r * N + n] = sum;
      e.dbias[n] += g;
    }
  }
  return e;
}

void check(const Shape& shape, int64_t N, bool with_bias, DType dtype, double tolerance) {
  CAPTURE(to_string(shape));
  CAPTURE(N);
  Tensor x = random_uniform(shape, 1, -1, 1, dtype),
         weight = random_uniform({N, shape[shape.ndim() - 1]}, 2, -1, 1, dtype);
  Tensor bias = with_bias ? random_uniform({N}, 3, -1, 1, dtype) : Tensor();
  x.set_requires_grad();
  weight.set_requires_grad();
  if (with_bias) bias.set_requires_grad();
  const Tensor y = linear(x, weight, bias);
  const Tensor dy = random_uniform(y.shape(), 4, -1, 1, dtype);
  y.backward(dy);
  const auto wide = [](const Tensor& t) { return t.detach().to(DType::f64); };
  const Expected e = naive(wide(x), wide(weight), with_bias ? wide(bias) : bias, wide(dy));
  CHECK(difference(y, from_values(e.y, y.shape()), tolerance) == "");
  CHECK(difference_relative_to_max(x.grad(), from_values(e.dx, x.shape()), tolerance) == "");
  CHECK(difference_relative_to_max(weight.grad(), from_values(e.dweight, weight.shape()), tolerance) == "");
  if (with_bias) CHECK(difference_relative_to_max(bias.grad(), from_values(e.dbias, {N}), tolerance) == "");
}

}  // namespace

TEST_CASE("linear equals plain loops, with all gradients") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const double tolerance = dtype == DType::f32 ? 2e-5 : 1e-12;
    check({2, 3, 8}, 5, true, dtype, tolerance);
    check({1, 64}, 192, true, dtype, tolerance);
    check({300, 33}, 70, false, dtype, tolerance);
    check({1300, 20}, 35, true, dtype, tolerance);      // several groups of rows
    check({2, 2200, 5}, 130, false, dtype, tolerance);  // more groups, several blocks each
    check({40, 150}, 600, true, dtype, tolerance);      // several blocks of columns
  }
}

TEST_CASE("linear: a weight gradient too large to be kept for each group of rows") {
  const int64_t rows = 520, N = 1500, K = 1450;
  REQUIRE(kernels::LinearBwd<float>::groups(rows, 4, 4) > 1);
  REQUIRE(kernels::LinearBwd<float>::groups(rows, N, K) == 1);
  const Tensor x = random_uniform({rows, K}, 1, -1, 1, DType::f32),
               dy = random_uniform({rows, N}, 2, -1, 1, DType::f32);
  Tensor weight = random_uniform({N, K}, 3, -1, 1, DType::f32), bias = random_uniform({N}, 4, -1, 1, DType::f32);
  weight.set_requires_grad();
  bias.set_requires_grad();
  linear(x, weight, bias).backward(dy);
  const Tensor columns = dy.view({N, rows}, {1, N});
  CHECK(difference_relative_to_max(weight.grad(), matmul(columns, x), 1e-5) == "");
  CHECK(difference_relative_to_max(bias.grad(), matmul(columns, ones({rows})), 1e-5) == "");
}

TEST_CASE("linear: gradients are added to what was gathered before") {
  for (const int64_t rows : {10, 1200}) {
    Tensor x = random_uniform({rows, 6}, 1), weight = random_uniform({6, 6}, 2), bias = random_uniform({6}, 3);
    x.set_requires_grad();
    weight.set_requires_grad();
    bias.set_requires_grad();
    // Both layers share their parameters, so the gradients of the first are added to those of the second.
    const Tensor y = linear(linear(x, weight, bias), weight, bias);
    const Tensor dy = random_uniform(y.shape(), 4);
    y.backward(dy);
    const Tensor hidden = linear(x.detach(), weight.detach(), bias.detach());
    const Expected second = naive(hidden, weight.detach(), bias.detach(), dy);
    const Expected first = naive(x.detach(), weight.detach(), bias.detach(), from_values(second.dx, hidden.shape()));
    const auto sum = [](std::vector<double> a, const std::vector<double>& b) {
      for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
      return a;
    };
    CHECK(difference(x.grad(), from_values(first.dx, x.shape()), 1e-10) == "");
    CHECK(difference(weight.grad(), from_values(sum(first.dweight, second.dweight), weight.shape()), 1e-10) == "");
    CHECK(difference(bias.grad(), from_values(sum(first.dbias, second.dbias), bias.shape()), 1e-10) == "");
  }
}

TEST_CASE("linear: only the gradients that are wanted") {
  const Tensor input = random_uniform({600, 4}, 1), dy = random_uniform({600, 3}, 2);
  Tensor weight = random_uniform({3, 4}, 3), bias = random_uniform({3}, 4);
  bias.set_requires_grad();
  linear(input, weight, bias).backward(dy);
  const Expected e = naive(input, weight, bias.detach(), dy);
  CHECK(difference(bias.grad(), from_values(e.dbias, {3}), 1e-10) == "");
  CHECK_FALSE(weight.grad().defined());
  weight.set_requires_grad();
  linear(input, weight).backward(dy);
  CHECK(difference(weight.grad(), from_values(e.dweight, {3, 4}), 1e-10) == "");
}

TEST_CASE("linear: a row's result does not depend on the rows around it") {
  const Tensor x = random_uniform({700, 64}, 1, -1, 1, DType::f32),
               weight = random_uniform({96, 64}, 2, -1, 1, DType::f32);
  const Tensor y = linear(x, weight), other = linear(random_uniform({700, 64}, 9, -1, 1, DType::f32), weight);
  Tensor changed = x.clone();
  changed.view({64}, {1}, 350 * 64).fill(7);
  const Tensor z = linear(changed, weight);
  const auto rows = [](const Tensor& t, int64_t begin, int64_t end) {
    return t.view({end - begin, 96}, {96, 1}, begin * 96);
  };
  CHECK(same_bits(rows(y, 0, 350), rows(z, 0, 350)));
  CHECK(same_bits(rows(y, 351, 700), rows(z, 351, 700)));
  CHECK_FALSE(same_bits(y, other));
}

TEST_CASE("linear: errors name the argument") {
  const auto message = [](const Tensor& x, const Tensor& weight, const Tensor& bias) -> std::string {
    try {
      linear(x, weight, bias);
    } catch (const OpError& error) {
      CHECK(error.op() == "linear");
      return error.what();
    }
    return "no error";
  };
  CHECK(message(zeros({2, 3}), zeros({4, 2}), {}) ==
        "linear: weight must be [N, K], K = last axis of x f32[2,3], got f32[4,2]");
  CHECK(message(zeros({2, 3}), zeros({3}), {}).find("weight must be [N, K]") != std::string::npos);
  CHECK(message(zeros({2, 3}), zeros({4, 3}), zeros({3})) ==
        "linear: bias must be [N], N = first axis of weight f32[4,3], got f32[3]");
  CHECK(message(zeros({}), zeros({4, 3}), {}) == "linear: x must be at least 1-D, got f32[]");
  CHECK(message({}, zeros({4, 3}), {}).find("x must be") != std::string::npos);
  CHECK(message(zeros({3}), {}, {}).find("weight must be") != std::string::npos);
  CHECK(message(zeros({3}), zeros({4, 3}, DType::f64), {}).find("weight must be of the dtype") != std::string::npos);
  CHECK(message(zeros({3}), zeros({4, 3}), zeros({4}, DType::f64)).find("bias must be of the dtype") !=
        std::string::npos);
}

}  // namespace margay::test
