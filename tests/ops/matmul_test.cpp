#include "ops/matmul.h"

#include <doctest/doctest.h>

#include <limits>

#include "engine/error.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

Shape leading(const Tensor& t) { return t.shape().without(t.ndim() - 1).without(t.ndim() - 2); }

// Which matrix of `t` meets matrix `index` of the result.
int64_t matrix_of(int64_t index, const Tensor& t, const Shape& batch) {
  const Shape own = leading(t), strides = broadcast_strides(own, contiguous_strides(own), batch);
  int64_t matrix = 0;
  for (int axis = batch.ndim() - 1; axis >= 0; --axis) {
    matrix += index % batch[axis] * strides[axis];
    index /= batch[axis];
  }
  return matrix;
}

// The product of tensors of at least two axes, in plain loops.
Tensor naive(const Tensor& a, const Tensor& b) {
  Shape batch;
  REQUIRE(broadcast(leading(a), leading(b), batch));
  const int64_t m = a.dim(-2), k = a.dim(-1), n = b.dim(-1);
  const auto x = a.to_vector<double>(), y = b.to_vector<double>();
  std::vector<double> c;
  for (int64_t index = 0; index < batch.numel(); ++index) {
    const double* const left = x.data() + matrix_of(index, a, batch) * m * k;
    const double* const right = y.data() + matrix_of(index, b, batch) * k * n;
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t p = 0; p < k; ++p) sum += left[i * k + p] * right[p * n + j];
        c.push_back(sum);
      }
    }
  }
  Shape shape = batch;
  shape.push_back(m);
  shape.push_back(n);
  return from_values(c, shape);
}

Tensor transposed(const Tensor& t) {
  Shape shape = t.shape(), strides = t.strides();
  const int last = t.ndim() - 1;
  std::swap(shape[last], shape[last - 1]);
  std::swap(strides[last], strides[last - 1]);
  return t.view(shape, strides);
}

void check(const Tensor& a, const Tensor& b) {
  CAPTURE(describe(a));
  CAPTURE(describe(b));
  CHECK(difference(matmul(a, b), naive(a, b), 1e-12) == "");
}

}  // namespace

TEST_CASE("matmul: any pair of leading axes") {
  const Shape shapes[] = {{}, {1}, {3}, {2, 3}, {2, 1}, {1, 1, 3}};
  for (const Shape& left : shapes) {
    for (const Shape& right : shapes) {
      Shape a = left, b = right;
      for (const int64_t size : {4, 5}) a.push_back(size);
      for (const int64_t size : {5, 2}) b.push_back(size);
      check(random_uniform(a, 1), random_uniform(b, 2));
    }
  }
}

TEST_CASE("matmul: sizes that several pieces share") {
  check(random_uniform({300, 70}, 1), random_uniform({70, 530}, 2));
  check(random_uniform({5, 2100}, 1), random_uniform({2100, 7}, 2));
  check(random_uniform({4, 100, 30}, 1), random_uniform({30, 60}, 2));
}

TEST_CASE("matmul: views are read by their strides") {
  const Tensor a = random_uniform({2, 6, 8}, 1), b = random_uniform({2, 8, 6}, 2);
  SUBCASE("transposed") { check(transposed(b), transposed(a)); }
  SUBCASE("rows of a wider matrix") { check(a.view({2, 6, 3}, a.strides(), 2), b.view({2, 3, 6}, b.strides(), 6)); }
  SUBCASE("columns of a taller matrix") {
    check(transposed(b.view({2, 4, 6}, b.strides())), a.view({2, 4, 8}, a.strides()));
  }
  SUBCASE("every other column") { check(a.view({2, 6, 4}, {48, 8, 2}), b.view({2, 4, 3}, {48, 12, 2})); }
  SUBCASE("one row for all") { check(a.view({2, 6, 8}, {48, 0, 1}), b); }
  SUBCASE("one matrix for all") { check(a.view({5, 6, 8}, {0, 8, 1}), b.view({5, 8, 6}, {0, 6, 1})); }
  SUBCASE("heads inside a row") {
    const Tensor x = random_uniform({2, 5, 3, 4}, 3);  // [B, T, H, D]
    const Tensor heads = x.view({2, 3, 5, 4}, {60, 4, 12, 1});
    check(heads, transposed(heads));
  }
}

TEST_CASE("matmul: vectors are rows and columns") {
  const Tensor a = random_uniform({3, 4}, 1), v = random_uniform({4}, 2), w = random_uniform({3}, 3);
  const Tensor column = v.view({4, 1}, {1, 1}), row = w.view({1, 3}, {3, 1});
  CHECK(matmul(a, v).shape() == Shape{3});
  CHECK(difference(matmul(a, v), naive(a, column).view({3}, {1}), 1e-12) == "");
  CHECK(matmul(w, a).shape() == Shape{4});
  CHECK(difference(matmul(w, a), naive(row, a).view({4}, {1}), 1e-12) == "");
  CHECK(matmul(v, v).shape() == Shape{});
  CHECK(difference(matmul(v, v), naive(v.view({1, 4}, {4, 1}), column).view({}, {}), 1e-12) == "");
  CHECK(matmul(random_uniform({2, 3, 4}, 4), v).shape() == Shape{2, 3});
}

TEST_CASE("matmul: empty sums are zero") {
  CHECK(difference(matmul(empty({2, 3, 0}), empty({2, 0, 4})), zeros({2, 3, 4}), 0) == "");
  CHECK(matmul(empty({0, 3}), empty({3, 4})).shape() == Shape{0, 4});
}

TEST_CASE("matmul: gradients go into what was gathered before") {
  // y = x W, used three times: the gradients of x and W add up.
  Tensor x = random_uniform({3, 2, 4}, 1), w = random_uniform({4, 4}, 2);
  x.set_requires_grad();
  w.set_requires_grad();
  const Tensor seed = random_uniform({3, 2, 4}, 3);
  matmul(x, w).backward(seed);
  const Tensor dx = x.grad().clone(), dw = w.grad().clone();
  CHECK(difference(dx, naive(seed, transposed(w.detach())), 1e-12) == "");
  CHECK(difference(dw, naive(transposed(x.detach().view({6, 4}, {4, 1})), seed.view({6, 4}, {4, 1})), 1e-12) == "");
  matmul(x, w).backward(seed);
  CHECK(difference(w.grad(), full({4, 4}, 0, DType::f64), 1e-12) != "");
  backend({}).accumulate(dw.region(), dw.clone().region());
  CHECK(difference(w.grad(), dw, 1e-12) == "");
}

TEST_CASE("matmul: errors name the argument") {
  const auto message = [](const Tensor& a, const Tensor& b) -> std::string {
    try {
      matmul(a, b);
    } catch (const OpError& error) {
      CHECK(error.op() == "matmul");
      return error.what();
    }
    return "no error";
  };
  CHECK(message(zeros({2, 3}), zeros({2, 3})) == "matmul: b must be [..., k, n], k = 3 as in a f32[2,3], got f32[2,3]");
  CHECK(message(zeros({3}), zeros({2, 3})).find("b must be") != std::string::npos);
  CHECK(message(zeros({2, 4, 3}), zeros({3, 3, 4})).find("leading axes") != std::string::npos);
  CHECK(message(zeros({}), zeros({2, 3})) == "matmul: a must be at least 1-D, got f32[]");
  CHECK(message(zeros({2}), zeros({})) == "matmul: b must be at least 1-D, got f32[]");
  CHECK(message(zeros({2, 2}), zeros({2, 2}, DType::f64)).find("b must be of the dtype") != std::string::npos);
  CHECK(message(zeros({2, 2}, DType::i32), zeros({2, 2})).find("a must be of a float dtype") != std::string::npos);
  CHECK(message({}, zeros({2, 2})).find("a must be") != std::string::npos);
}

}  // namespace margay::test
