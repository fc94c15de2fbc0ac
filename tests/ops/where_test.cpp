#include "ops/where.h"

#include <doctest/doctest.h>

#include <limits>

#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

Tensor small_integers(const Shape& shape, uint64_t seed, DType dtype) {
  return random_uniform(shape, seed, -50, 50).to(DType::i32).to(dtype);
}

Tensor random_mask(const Shape& shape, uint64_t seed) {
  return random_uniform(shape, seed, 0, 2).to(DType::i32).to(DType::boolean);
}

// The element of a broadcast tensor at an index of the common shape.
double broadcast_value(const Elements& e, const Shape& shape, const Index& index) {
  Index own;
  for (int axis = 0; axis < shape.ndim(); ++axis) {
    const int64_t i = index[index.size() - static_cast<size_t>(shape.ndim() - axis)];
    own.push_back(shape[axis] == 1 ? 0 : i);
  }
  return e(own);
}

}  // namespace

TEST_CASE("where: plain loops agree for every dtype and way to broadcast") {
  const Shape cases[][3] = {{{4, 40}, {4, 40}, {4, 40}}, {{40}, {4, 40}, {}},      {{40}, {}, {4, 40}},
                            {{4, 40}, {}, {1}},          {{4, 1}, {4, 40}, {40}},  {{2, 1, 3}, {5, 1}, {2, 5, 3}},
                            {{}, {3}, {2, 3}},           {{3, 1}, {1, 40}, {3, 1}}};
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean}) {
    for (const auto& [mask_shape, a_shape, b_shape] : cases) {
      CAPTURE(name_of(dtype));
      CAPTURE(to_string(mask_shape));
      const Tensor mask = random_mask(mask_shape, 1);
      const Tensor a = small_integers(a_shape, 2, dtype), b = small_integers(b_shape, 3, dtype);
      Shape values, shape;
      REQUIRE(broadcast(a_shape, b_shape, values));
      REQUIRE(broadcast(values, mask_shape, shape));
      const Elements m(mask), ea(a), eb(b);
      const Tensor expected = from_function(shape, dtype, [&](const Index& i) {
        return broadcast_value(m, mask_shape, i) != 0 ? broadcast_value(ea, a_shape, i)
                                                      : broadcast_value(eb, b_shape, i);
      });
      CHECK(same_bits(where(mask, a, b), expected));
      CHECK(same_bits(where(as_strided_copy(mask), as_strided_copy(a), as_strided_copy(b)), expected));
    }
  }
}

TEST_CASE("where, masked_fill: what is not chosen does not matter") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor mask = from_values<bool>({true, false, true}, {3});
  Tensor a = from_values<double>({1, nan, 3}, {3}), b = from_values<double>({inf, 2, nan}, {3});
  a.set_requires_grad();
  b.set_requires_grad();
  const Tensor y = where(mask, a, b);
  CHECK(y.to_vector<double>() == std::vector<double>{1, 2, 3});
  y.backward(from_values<double>({5, 6, 7}, {3}));
  CHECK(a.grad().to_vector<double>() == std::vector<double>{5, 0, 7});
  CHECK(b.grad().to_vector<double>() == std::vector<double>{0, 6, 0});
  a.zero_grad();
  const Tensor filled = masked_fill(a, from_values<bool>({false, true, true}, {3}), -inf);
  CHECK(filled.to_vector<double>() == std::vector<double>{1, -inf, -inf});
  filled.backward(from_values<double>({5, 6, 7}, {3}));
  CHECK(a.grad().to_vector<double>() == std::vector<double>{5, 0, 0});
}

TEST_CASE("masked_fill: the mask broadcasts to x, for every dtype") {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean}) {
    CAPTURE(name_of(dtype));
    const Tensor x = small_integers({2, 3, 5}, 1, dtype), mask = random_mask({3, 1}, 2);
    const Elements e(x), m(mask);
    CHECK(same_bits(masked_fill(as_strided_copy(x), mask, 1), from_function({2, 3, 5}, dtype, [&](const Index& i) {
                      return m({i[1], 0}) != 0 ? 1 : e(i);
                    })));
  }
}

TEST_CASE("where, masked_fill: errors") {
  const Tensor mask = zeros({2, 3}, DType::boolean), x = zeros({2, 3});
  CHECK(op_error([&] { where(x, x, x); }) ==
        "where: mask must be of dtype bool on the device of a f32[2,3], got f32[2,3]");
  CHECK(op_error([&] {
          where(mask, x, zeros({2, 3}, DType::f64));
        }) == "where: b must be of the dtype and device of a f32[2,3], got f64[2,3]");
  CHECK(op_error([&] {
          where(mask, x, zeros({2, 2}));
        }) == "where: b must be of a shape that broadcasts with a f32[2,3], got f32[2,2]");
  CHECK(op_error([&] { where(mask, zeros({2}), zeros({})); }) ==
        "where: mask must be of a shape that broadcasts with a f32[2] and b f32[], got bool[2,3]");
  CHECK(op_error([&] { where(Tensor(), x, x); }).ends_with("got none"));
  CHECK(op_error([&] { masked_fill(zeros({3}), mask, 0); }) ==
        "masked_fill: mask must be of a shape that broadcasts to that of x f32[3], got bool[2,3]");
  CHECK(op_error([&] { masked_fill(Tensor(), mask, 0); }) == "masked_fill: x must be a tensor, got none");
}

}  // namespace margay::test
