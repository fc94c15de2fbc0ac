#include "ops/reduce.h"

#include <doctest/doctest.h>

#include <cmath>

#include "ops/binary.h"
#include "ops/unary.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

// Reduces the lists of elements that share a place on the axes that stay, with plain loops.
Tensor reduce_naively(const Tensor& x, const std::vector<bool>& reduced, double (*reduce)(const std::vector<double>&)) {
  Shape kept;
  for (int axis = 0; axis < x.ndim(); ++axis) kept.push_back(reduced[static_cast<size_t>(axis)] ? 1 : x.shape()[axis]);
  std::vector<std::vector<double>> lists(static_cast<size_t>(kept.numel()));
  const Elements values(x);
  for_each_index(x.shape(), [&](const Index& at) {
    int64_t place = 0;
    for (size_t axis = 0; axis < at.size(); ++axis)
      place = place * kept[static_cast<int>(axis)] + (reduced[axis] ? 0 : at[axis]);
    lists[static_cast<size_t>(place)].push_back(values(at));
  });
  std::vector<double> results;
  for (const auto& list : lists) results.push_back(reduce(list));
  return from_values(results, kept);
}

double sum_of(const std::vector<double>& v) {
  double total = 0;
  for (const double x : v) total += x;
  return total;
}
double mean_of(const std::vector<double>& v) { return sum_of(v) / static_cast<double>(v.size()); }
double max_of(const std::vector<double>& v) {
  double largest = -INFINITY;
  for (const double x : v) largest = std::max(largest, x);
  return largest;
}
double logsumexp_of(const std::vector<double>& v) {
  const double largest = max_of(v);
  double total = 0;
  for (const double x : v) total += std::exp(x - largest);
  return largest + std::log(total);
}
double var_of(const std::vector<double>& v) {
  const double mean = mean_of(v);
  double total = 0;
  for (const double x : v) total += (x - mean) * (x - mean);
  return total / static_cast<double>(v.size());
}
double norm_of(const std::vector<double>& v) {
  double total = 0;
  for (const double x : v) total += x * x;
  return std::sqrt(total);
}

struct Case {
  std::string name;
  Tensor (*function)(const Tensor&, const Axes&, bool);
  double (*exact)(const std::vector<double>&);
};
const Case kCases[] = {
    {"sum", sum, sum_of},
    {"mean", mean, mean_of},
    {"max", max, max_of},
    {"logsumexp", logsumexp, logsumexp_of},
    {"var", [](const Tensor& x, const Axes& axes, bool keepdim) { return var(x, axes, keepdim); }, var_of},
    {"norm2", norm2, norm_of}};

}  // namespace

TEST_CASE("reduce: every set of axes equals plain loops") {
  const Tensor x = random_uniform({3, 1, 5, 19}, 4, -3, 3, DType::f32);
  for (const Case& c : kCases) {
    for (unsigned set = 0; set < 16; ++set) {
      std::vector<bool> reduced;
      std::vector<int> list;
      for (int axis = 0; axis < 4; ++axis) {
        reduced.push_back((set >> axis & 1u) != 0);
        if (reduced.back()) list.push_back(axis % 2 == 0 ? axis : axis - 4);
      }
      const Axes axes(list);
      CAPTURE(c.name);
      CAPTURE(set);
      const Tensor expected = reduce_naively(x, reduced, c.exact);
      CHECK(difference(c.function(x, axes, true), expected, 2e-6) == "");
      const Tensor squeezed = c.function(x, axes, false);
      Shape shape;
      for (int axis = 0; axis < 4; ++axis)
        if (!reduced[static_cast<size_t>(axis)]) shape.push_back(x.shape()[axis]);
      CHECK(squeezed.shape() == shape);
      CHECK(difference(squeezed, expected.view(shape, contiguous_strides(shape)), 2e-6) == "");
      CHECK(difference(c.function(as_strided_copy(x), axes, true), expected, 2e-6) == "");
    }
  }
}

TEST_CASE("reduce: long rows and columns, cut into stretches, are accurate in f32") {
  for (const Shape& shape : {Shape{2, 50003}, Shape{50003, 2}, Shape{1500, 70}}) {
    const Tensor x = random_uniform(shape, 5, 0.1, 1.1, DType::f32);
    for (const Case& c : kCases) {
      CAPTURE(c.name);
      CAPTURE(to_string(shape));
      const int axis = shape[0] > shape[1] ? 0 : 1;
      std::vector<bool> reduced(2);
      reduced[static_cast<size_t>(axis)] = true;
      CHECK(difference(c.function(x, axis, true), reduce_naively(x, reduced, c.exact), 1e-6) == "");
    }
  }
  const Tensor tenths = full({1 << 24}, 0.1);
  CHECK(sum(tenths).item() == doctest::Approx((1 << 24) * static_cast<double>(0.1f)).epsilon(5e-7));
  CHECK(mean(tenths).item() == doctest::Approx(static_cast<double>(0.1f)).epsilon(5e-7));
}

TEST_CASE("reduce: the gradient of max goes to the first of equal elements") {
  Tensor x = from_values<float>({1, 3, 3, 2, 5, 5}, {2, 3});
  x.set_requires_grad();
  max(x, 1).backward(from_values<float>({10, 20}, {2}));
  CHECK(x.grad().to_vector<float>() == std::vector<float>{0, 10, 0, 0, 20, 0});
  x.zero_grad();
  max(x, 0).backward(from_values<float>({1, 2, 3}, {3}));
  CHECK(x.grad().to_vector<float>() == std::vector<float>{0, 0, 0, 1, 2, 3});
  x.zero_grad();
  max(x).backward();
  CHECK(x.grad().to_vector<float>() == std::vector<float>{0, 0, 0, 0, 1, 0});
  // In a row of several stretches.
  Tensor row = zeros({40000});
  row.data<float>()[20000] = row.data<float>()[39999] = 2;
  row.set_requires_grad();
  max(row).backward();
  CHECK(row.grad().data<float>()[20000] == 1);
  CHECK(sum(row.grad()).item() == 1);
}

TEST_CASE("reduce: extremes") {
  const double inf = INFINITY;
  CHECK(std::isnan(max(from_values<float>({1, NAN, 2}, {3})).item()));
  CHECK(max(full({40}, -inf)).item() == -inf);
  CHECK(logsumexp(from_values<float>({1000, 1000}, {2})).item() == doctest::Approx(1000 + std::log(2.0)));
  CHECK(logsumexp(from_values<float>({-1000, -1001}, {2})).item() ==
        doctest::Approx(-1000 + std::log1p(std::exp(-1.0))));
  CHECK(logsumexp(from_values<double>({1, inf}, {2})).item() == inf);
  CHECK(std::isnan(logsumexp(from_values<double>({1, NAN}, {2})).item()));
  CHECK(sum(zeros({0})).item() == 0);
  CHECK(std::isnan(mean(zeros({0})).item()));
  CHECK(logsumexp(zeros({0})).item() == -inf);
  CHECK(var(from_values<float>({1e4f, 1e4f + 1, 1e4f + 2}, {3}), Axes::all(), false, 1).item() == doctest::Approx(1));
  // A row without a finite element, and a zero row: no NaN in the gradients.
  Tensor x = full({2, 3}, -inf);
  x.set_requires_grad();
  logsumexp(x, 1).backward(ones({2}));
  CHECK(x.grad().to_vector<float>() == std::vector<float>(6, 0));
  Tensor z = zeros({2, 3});
  z.set_requires_grad();
  norm2(z, 1).backward(ones({2}));
  CHECK(z.grad().to_vector<float>() == std::vector<float>(6, 0));
}

TEST_CASE("reduce: the gradient of a sum is added to others") {
  for (const bool sum_first : {false, true}) {
    Tensor x = random_uniform({4, 3}, 6);
    x.set_requires_grad();
    const Tensor v = neg(x);
    const Tensor a = sum_first ? sum(v) : sum(square(v)), b = sum_first ? sum(square(v)) : sum(v);
    add(a, b).backward();
    CHECK(difference(x.grad(),
                     from_function({4, 3}, DType::f64, [x = Elements(x)](const Index& at) { return 2 * x(at) - 1; }),
                     1e-12) == "");
  }
}

TEST_CASE("cumsum equals plain loops in both directions and stays accurate") {
  const Tensor x = random_uniform({3, 700, 70}, 7, -1, 1, DType::f32);
  for (const bool reverse : {false, true}) {
    Elements expected(x.shape());
    const Elements values(x);
    for (int64_t o = 0; o < 3; ++o)
      for (int64_t i = 0; i < 70; ++i) {
        double total = 0;
        for (int64_t step = 0; step < 700; ++step) {
          const int64_t t = reverse ? 699 - step : step;
          expected({o, t, i}) = total += values({o, t, i});
        }
      }
    CHECK(difference(cumsum(x, 1, reverse), expected.to_tensor(DType::f64), 1e-6) == "");
  }
  const Tensor tenths = full({1, 1000000}, 0.1);
  CHECK(cumsum(tenths, 1).to_vector<float>().back() == doctest::Approx(1e6 * static_cast<double>(0.1f)).epsilon(5e-7));
}

TEST_CASE("reduce: errors name op and argument") {
  CHECK(op_error([] { sum(zeros({2, 3}), 2); }) == "sum: axis must be an axis of f32[2,3], got 2");
  CHECK(op_error([] { mean(zeros({2, 3}), {0, -2}); }) == "mean: axes must be named once each, got -2");
  CHECK(op_error([] {
          max(zeros({2, 0}), 1);
        }) == "max: x must be of at least one element along the axes, got f32[2,0]");
  CHECK(op_error([] { var(zeros({2}, DType::i64)); }) == "var: x must be of a float dtype, got i64[2]");
  CHECK(op_error([] { cumsum(zeros({2}), 1); }) == "cumsum: axis must be an axis of f32[2], got 1");
}

}  // namespace margay::test
