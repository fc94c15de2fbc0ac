#include "ops/cast.h"

#include <doctest/doctest.h>

#include "tests/support/compare.h"
#include "tests/support/op_error.h"

namespace margay::test {

TEST_CASE("cast: values and gradients are converted") {
  for (const DType from : {DType::f32, DType::f64, DType::bf16}) {
    for (const DType to : {DType::f32, DType::f64, DType::bf16}) {
      CAPTURE(name_of(from));
      CAPTURE(name_of(to));
      Tensor x = random_uniform({3, 4}, 1).to(from);
      const Tensor values = x.detach(), dy = random_uniform({3, 4}, 2).to(to);
      x.set_requires_grad();
      const Tensor y = cast(x, to);
      CHECK(same_bits(y, values.to(to)));
      y.backward(dy);
      CHECK(same_bits(x.grad(), dy.to(from)));
    }
  }
}

TEST_CASE("cast: the same dtype gives the tensor itself, integers have no gradient") {
  Tensor x = from_values<float>({-1.5f, 0.0f, 2.7f}, {3});
  x.set_requires_grad();
  CHECK(cast(x, DType::f32).same(x));
  CHECK(cast(x, DType::i32).to_vector<int32_t>() == std::vector<int32_t>{-1, 0, 2});
  CHECK(cast(x, DType::boolean).to_vector<bool>() == std::vector<bool>{true, false, true});
  CHECK_FALSE(cast(x, DType::i64).requires_grad());
  CHECK_FALSE(cast(from_values<int32_t>({1}, {1}), DType::f32).requires_grad());
  CHECK(op_error([] { cast(Tensor(), DType::f32); }) == "cast: x must be a tensor, got none");
}

}  // namespace margay::test
