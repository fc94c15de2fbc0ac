// head_outer and head_product against plain loops, from views too, and what they refuse.

#include "ops/head_outer.h"

#include <doctest/doctest.h>

#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {

TEST_CASE("outer and matrix products of heads equal their definitions") {
  for (const DType dtype : {DType::f64, DType::f32})
    for (const int64_t e : {1, 2, 3, 4, 5}) {
      const int64_t rows = 7, heads = 6, C = heads * e;
      const Tensor wide = random_uniform({rows, 3 * C}, 1, -1, 1, dtype),
                   m = random_uniform({rows, C * e}, 2, -1, 1, dtype);
      const Tensor a = wide.view({rows, C}, wide.strides(), 0), b = wide.view({rows, C}, wide.strides(), 2 * C);
      const Elements left(a.contiguous()), right(b.contiguous()), matrix(m);
      const Tensor outer = from_function({rows, C * e}, dtype, [&](const Index& at) {
        const int64_t h = at[1] / (e * e), i = at[1] / e % e, j = at[1] % e;
        return left({at[0], h * e + i}) * right({at[0], h * e + j});
      });
      CHECK(difference(head_outer(a, b, e), outer, dtype == DType::f64 ? 1e-15 : 1e-6) == "");
      const Tensor product = from_function({rows, C}, dtype, [&](const Index& at) {
        double sum = 0;
        for (int64_t i = 0; i < e; ++i)
          sum += left({at[0], at[1] / e * e + i}) * matrix({at[0], at[1] / e * e * e + i * e + at[1] % e});
        return sum;
      });
      CHECK(difference(head_product(a, m, e), product, dtype == DType::f64 ? 1e-15 : 1e-6) == "");
    }
}

TEST_CASE("products of heads say what is wrong with their arguments") {
  const Tensor a = zeros({2, 6});
  CHECK(op_error([&] { head_outer(a, a, 0); }) == "head_outer: head_dim must be at least 1, got 0");
  CHECK(op_error([&] { head_outer(a, a, 4); }) ==
        "head_outer: a must be [N,C], C divisible by head_dim 4, got f32[2,6]");
  CHECK(op_error([&] {
          head_outer(a, zeros({2, 5}), 2);
        }) == "head_outer: b must be [2,6] for a f32[2,6] and head_dim 2, got f32[2,5]");
  CHECK(op_error([&] { head_product(a, a, 2); }) ==
        "head_product: m must be [2,12] for a f32[2,6] and head_dim 2, got f32[2,6]");
}

}  // namespace margay::test
