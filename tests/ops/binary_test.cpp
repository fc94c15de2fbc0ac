#include "ops/binary.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

struct Case {
  std::string name;
  Tensor (*function)(const Operand&, const Operand&);
  double (*exact)(double, double);
};
const Case kCases[] = {{"add", add, [](double a, double b) { return a + b; }},
                       {"sub", sub, [](double a, double b) { return a - b; }},
                       {"mul", mul, [](double a, double b) { return a * b; }},
                       {"div", div, [](double a, double b) { return a / b; }},
                       {"maximum", maximum, [](double a, double b) { return std::max(a, b); }},
                       {"minimum", minimum, [](double a, double b) { return std::min(a, b); }}};

// The element of a tensor that NumPy's rules put at a place of the broadcast shape.
double element(const Elements& values, const Shape& shape, const Index& at) {
  Index own;
  for (int axis = 0; axis < shape.ndim(); ++axis) {
    const size_t place = at.size() - static_cast<size_t>(shape.ndim() - axis);
    own.push_back(shape[axis] == 1 ? 0 : at[place]);
  }
  return values(own);
}

}  // namespace

TEST_CASE("binary: broadcasting equals plain loops, also over views") {
  const std::pair<Shape, Shape> shapes[] = {{{3, 4, 5}, {3, 4, 5}}, {{40000}, {40000}},    {{1100, 33}, {33}},
                                            {{4, 1, 5}, {1, 3, 1}}, {{}, {2, 7}},          {{6, 1}, {1, 40}},
                                            {{5, 2, 3}, {5, 1, 3}}, {{2, 1, 1, 3}, {4, 1}}};
  for (const Case& c : kCases) {
    for (const auto& [first, second] : shapes) {
      CAPTURE(c.name);
      CAPTURE(to_string(first));
      const Tensor a = random_uniform(first, 1, 0.5, 2, DType::f32), b = random_uniform(second, 2, 0.5, 2, DType::f32);
      Shape shape;
      REQUIRE(broadcast(first, second, shape));
      const Elements left(a), right(b);
      const Tensor expected = from_function(shape, DType::f64, [&](const Index& at) {
        return c.exact(element(left, first, at), element(right, second, at));
      });
      CHECK(difference(c.function(a, b), expected, 1e-6) == "");
      CHECK(same_bits(c.function(as_strided_copy(a), as_strided_copy(b)), c.function(a, b)));
    }
  }
}

TEST_CASE("binary: numbers and operators") {
  const Tensor a = from_values<double>({1, 2, 4}, {3}), b = from_values<double>({2, 2, 0.5}, {3});
  const auto values = [](const Tensor& t) { return t.to_vector<double>(); };
  using Values = std::vector<double>;
  CHECK(values(a + b) == Values{3, 4, 4.5});
  CHECK(values(a - b) == Values{-1, 0, 3.5});
  CHECK(values(a * b) == Values{2, 4, 2});
  CHECK(values(a / b) == Values{0.5, 1, 8});
  CHECK(values(a + 1) == Values{2, 3, 5});
  CHECK(values(1 - a) == Values{0, -1, -3});
  CHECK(values(2 * a - 3) == Values{-1, 1, 5});
  CHECK(values(4 / a) == Values{4, 2, 1});
  CHECK(values(-a) == Values{-1, -2, -4});
  CHECK(values(maximum(a, 2)) == Values{2, 2, 4});
  CHECK(values(minimum(3, a)) == Values{1, 2, 3});
}

TEST_CASE("binary: ties of maximum and minimum, and NaN") {
  for (const auto function : {maximum, minimum}) {
    Tensor a = from_values<float>({1, 2}, {2}), b = from_values<float>({1, 2}, {2});
    a.set_requires_grad();
    b.set_requires_grad();
    function(a, b).backward(ones({2}));
    CHECK(a.grad().to_vector<float>() == std::vector<float>{1, 1});
    CHECK(b.grad().to_vector<float>() == std::vector<float>{0, 0});
    const Tensor nan = full({1}, NAN), one = ones({1});
    CHECK(std::isnan(function(nan, one).item()));
    CHECK(std::isnan(function(one, nan).item()));
  }
}

TEST_CASE("binary: comparisons") {
  const Tensor a = from_values<int32_t>({1, 2, 3}, {3}), b = from_values<int32_t>({2, 2, 2}, {3});
  const auto values = [](const Tensor& t) {
    CHECK(t.dtype() == DType::boolean);
    return t.to(DType::f64).to_vector<double>();
  };
  using Values = std::vector<double>;
  CHECK(values(less(a, b)) == Values{1, 0, 0});
  CHECK(values(less_equal(a, b)) == Values{1, 1, 0});
  CHECK(values(greater(a, b)) == Values{0, 0, 1});
  CHECK(values(greater_equal(a, 2)) == Values{0, 1, 1});
  CHECK(values(equal(2, a)) == Values{0, 1, 0});
  CHECK(values(not_equal(a, b)) == Values{1, 0, 1});
  const Tensor nan = full({1}, NAN);
  CHECK(values(equal(nan, nan)) == Values{0});
  CHECK(values(not_equal(nan, nan)) == Values{1});
  CHECK(values(greater_equal(nan, nan)) == Values{0});
}

TEST_CASE("binary: a VJP keeps only what it reads") {
  Tensor a = ones({2}), b = ones({2});
  a.set_requires_grad();
  const Tensor product = mul(a, b);
  a.detach().fill(3);  // b has no gradient, so a was not kept
  product.backward(ones({2}));
  CHECK(a.grad().to_vector<float>() == std::vector<float>{1, 1});
  b.set_requires_grad();
  const Tensor second = mul(a.detach(), b);
  a.detach().fill(4);
  CHECK_THROWS_AS(second.backward(ones({2})), std::logic_error);
}

TEST_CASE("binary: errors name op and argument") {
  CHECK(op_error([] { add(zeros({2, 3}), zeros({4})); }) == "add: b must be broadcastable with a f32[2,3], got f32[4]");
  CHECK(op_error([] { mul(zeros({2}), zeros({2}, DType::f64)); }) ==
        "mul: b must be of the dtype and device of a f32[2], got f64[2]");
  CHECK(op_error([] { sub(zeros({2}, DType::i32), 1); }) == "sub: a must be of a float dtype, got i32[2]");
  CHECK(op_error([] { div(1, Tensor()); }) == "div: b must be defined, got none");
  CHECK(op_error([] { less(ones({1}, DType::boolean), 1); }).starts_with("less: device must be one with a kernel"));
}

}  // namespace margay::test
