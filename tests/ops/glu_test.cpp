#include "ops/glu.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {

TEST_CASE("swiglu and glu equal plain loops") {
  for (const Shape& shape : {Shape{600, 66}, Shape{2, 3, 2}, Shape{128}}) {
    const Tensor x = random_uniform(shape, 1, -9, 9, DType::f32);
    const Elements values(x);
    const int64_t m = x.dim(-1) / 2;
    const auto expected = [&](auto function) {
      return from_function(shape.with(shape.ndim() - 1, m), DType::f64, [&](const Index& at) {
        Index second = at;
        second.back() += m;
        return function(values(at), values(second));
      });
    };
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    CHECK(difference(swiglu(x), expected([&](double a, double b) { return a * sigmoid(a) * b; }), 1e-6) == "");
    CHECK(difference(glu(x), expected([&](double a, double b) { return a * sigmoid(b); }), 1e-6) == "");
  }
}

TEST_CASE("glu: errors name op and argument") {
  CHECK(op_error([] { swiglu(zeros({2, 7})); }) == "swiglu: x must be of an even last axis, got f32[2,7]");
  CHECK(op_error([] { glu(zeros({})); }) == "glu: x must be of an even last axis, got f32[]");
  CHECK(op_error([] { glu(zeros({4}, DType::i64)); }) == "glu: x must be of a float dtype, got i64[4]");
}

}  // namespace margay::test
