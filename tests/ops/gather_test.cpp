#include "ops/gather.h"

#include <doctest/doctest.h>

#include "engine/rng.h"
#include "ops/concat.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean};

Tensor random_index(const Shape& shape, uint32_t size, uint64_t seed) {
  RandomStream random(seed, 1);
  std::vector<int32_t> values(static_cast<size_t>(shape.numel()));
  for (int32_t& value : values) value = static_cast<int32_t>(random.below(size));
  return from_values(values, shape);
}

Index replaced(Index index, int axis, double value) {
  index[static_cast<size_t>(axis)] = static_cast<int64_t>(value);
  return index;
}

}  // namespace

TEST_CASE("index_select, gather, scatter_add: plain loops agree along every axis, for every dtype") {
  for (const DType dtype : kDTypes) {
    for (const int axis : {0, 1, 2}) {
      CAPTURE(name_of(dtype));
      CAPTURE(axis);
      const Tensor x = random_uniform({3, 4, 5}, 3, -9, 9).to(DType::i32).to(dtype), strided = as_strided_copy(x);
      const auto size = static_cast<uint32_t>(x.dim(axis));
      const Tensor list = random_index({7}, size, 1), index = random_index(x.shape().with(axis, 7), size, 2);
      const Elements e(x), l(list), at(index);
      CHECK(same_bits(index_select(strided, axis, list), from_function(index.shape(), dtype, [&](const Index& i) {
                        return e(replaced(i, axis, l({i[static_cast<size_t>(axis)]})));
                      })));
      CHECK(
          same_bits(gather(strided, axis - 3, as_strided_copy(index)),
                    from_function(index.shape(), dtype, [&](const Index& i) { return e(replaced(i, axis, at(i))); })));
      if (dtype == DType::boolean) continue;
      const Tensor source = random_uniform(index.shape(), 4, -9, 9).to(DType::i32).to(dtype);
      const Elements s(source);
      Elements expected(x);
      for_each_index(index.shape(), [&](const Index& i) { expected(replaced(i, axis, at(i))) += s(i); });
      CHECK(same_bits(scatter_add(strided, axis, as_strided_copy(index), as_strided_copy(source)),
                      expected.to_tensor(dtype)));
      CHECK(same_bits(x, strided));
    }
  }
}

TEST_CASE("gather: x and index broadcast against each other") {
  const Tensor x = random_uniform({3, 1, 5}, 1), index = random_index({1, 4, 2}, 5, 2);
  const Elements e(x), at(index);
  CHECK(same_bits(gather(x, 2, index), from_function({3, 4, 2}, DType::f64, [&](const Index& i) {
                    return e({i[0], 0, static_cast<int64_t>(at({0, i[1], i[2]}))});
                  })));
}

TEST_CASE("index_select, gather: gradients add up, also with those of other uses") {
  const auto call = [](const Tensors& in) {
    const Tensor& x = in[0];
    return Tensors{concat({index_select(x, 1, from_values<int32_t>({2, 2, 0, 1, 2}, {5})),
                           gather(x, 1, from_values<int32_t>({0, 0, 1, 2, 2, 1}, {3, 2})), x,
                           scatter_add(x, 1, from_values<int32_t>({0, 0, 1, 2, 2, 1}, {3, 2}), slice(x, 1, 0, 2))},
                          1)};
  };
  CHECK(gradcheck(call, {random_uniform({3, 3}, 1)}, {true}) == "");
}

TEST_CASE("index_select: gradients of rows shared by several pieces") {
  Tensor x = random_uniform({2, 5, 24}, 1);
  x.set_requires_grad();
  const Tensor index = random_index({3000}, 5, 2), dy = random_uniform({2, 3000, 24}, 3);
  index_select(x, 1, index).backward(dy);
  Elements expected(x.shape());
  const Elements at(index), e(dy);
  for_each_index(dy.shape(), [&](const Index& i) { expected(replaced(i, 1, at({i[1]}))) += e(i); });
  CHECK(difference(x.grad(), expected.to_tensor(DType::f64), 1e-12) == "");
}

TEST_CASE("index_select, gather, scatter_add: errors") {
  const Tensor x = zeros({2, 3}), index = from_values<int32_t>({0, 1, 2, 3}, {2, 2});
  CHECK(op_error([&] { index_select(x, 1, reshape(index, {4})); }) ==
        "index_select: index must be at least 0 and less than 3, got 3 at [3]");
  CHECK(op_error([&] {
          index_select(x, 1, zeros({2, 2}, DType::i32));
        }) == "index_select: index must be [n], got i32[2,2]");
  CHECK(op_error([&] { index_select(x, 1, zeros({2})); }) ==
        "index_select: index must be of dtype i32 on cpu, got f32[2]");
  CHECK(op_error([&] { index_select(x, 2, zeros({2}, DType::i32)); }) ==
        "index_select: axis must be an axis of f32[2,3], got 2");
  CHECK(op_error([&] { gather(x, 1, index); }) == "gather: index must be at least 0 and less than 3, got 3 at [1,1]");
  CHECK(op_error([&] {
          gather(x, 0, zeros({1, 2}, DType::i32));
        }) == "gather: index must be of a shape that broadcasts with x f32[2,3] but for axis 0, got i32[1,2]");
  CHECK(op_error([&] { gather(x, 0, zeros({3}, DType::i32)); }).starts_with("gather: index must be of a shape"));
  CHECK(op_error([&] { gather(Tensor(), 0, index); }) == "gather: x must be a tensor, got none");
  CHECK(op_error([&] { scatter_add(x, 1, index, zeros({2, 2})); }).ends_with("got 3 at [1,1]"));
  const Tensor zero = zeros({2, 2}, DType::i32);
  CHECK(op_error([&] {
          scatter_add(x, 0, zero, zeros({2, 2}));
        }) == "scatter_add: index must be of the shape of x f32[2,3] but for axis 0, got i32[2,2]");
  CHECK(op_error([&] {
          scatter_add(x, 1, zero, zeros({2, 1}));
        }) == "scatter_add: source must be of the shape of index i32[2,2], got f32[2,1]");
  CHECK(op_error([&] {
          scatter_add(x, 1, zero, zeros({2, 2}, DType::f64));
        }) == "scatter_add: source must be of the dtype and device of x f32[2,3], got f64[2,2]");
  CHECK(op_error([&] {
          scatter_add(zeros({2, 3}, DType::boolean), 1, zero, zeros({2, 2}, DType::boolean));
        }) == "scatter_add: x must be of a dtype other than bool, got bool[2,3]");
}

}  // namespace margay::test
