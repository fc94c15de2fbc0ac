#include "ops/view.h"

#include <doctest/doctest.h>

#include <limits>

#include "engine/debug.h"
#include "engine/rng.h"
#include "ops/concat.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean};

// Small integers, exact in every dtype, contiguous or not.
template <class Check>
void for_each_input(const Shape& shape, const Check& check) {
  for (const DType dtype : kDTypes) {
    CAPTURE(name_of(dtype));
    const Tensor x = random_uniform(shape, 3, -50, 50).to(DType::i32).to(dtype);
    check(x);
    check(as_strided_copy(x));
  }
}

void check_view(const Tensor& y, const Tensor& x, const Tensor& expected) {
  CHECK(same_bits(y, expected));
  CHECK(y.storage() == x.storage());
}

}  // namespace

TEST_CASE("view: every view moves elements as its definition says") {
  for_each_input({2, 3, 4}, [](const Tensor& x) {
    const Elements e(x);
    check_view(transpose(x, 0, -1), x, from_function({4, 3, 2}, x.dtype(), [&](const Index& i) {
                 return e({i[2], i[1], i[0]});
               }));
    check_view(permute(x, {1, -1, 0}), x, from_function({3, 4, 2}, x.dtype(), [&](const Index& i) {
                 return e({i[2], i[0], i[1]});
               }));
    check_view(slice(x, 2, 1, -1), x, from_function({2, 3, 2}, x.dtype(), [&](const Index& i) {
                 return e({i[0], i[1], i[2] + 1});
               }));
    check_view(slice(x, -2, -3, 3, 2), x, from_function({2, 2, 4}, x.dtype(), [&](const Index& i) {
                 return e({i[0], i[1] * 2, i[2]});
               }));
    check_view(select(x, 1, 2), x, from_function({2, 4}, x.dtype(), [&](const Index& i) {
                 return e({i[0], 2, i[1]});
               }));
    check_view(select(x, -1, -4), x, from_function({2, 3}, x.dtype(), [&](const Index& i) {
                 return e({i[0], i[1], 0});
               }));
    check_view(unsqueeze(x, 1), x, from_function({2, 1, 3, 4}, x.dtype(), [&](const Index& i) {
                 return e({i[0], i[2], i[3]});
               }));
    check_view(squeeze(unsqueeze(x, -1), 3), x, x.contiguous());
    check_view(expand(unsqueeze(x, 1), {5, 2, 6, -1, 4}), x,
               from_function({5, 2, 6, 3, 4}, x.dtype(), [&](const Index& i) {
                 return e({i[1], i[3], i[4]});
               }));
    CHECK(same_bits(flatten(x, 1), reshape(x.contiguous(), {2, 12})));
    CHECK(same_bits(flatten(x), reshape(x.contiguous(), {24})));
  });
}

TEST_CASE("slice: ends, empty ranges and steps beyond the end") {
  const Tensor x = from_values<int32_t>({0, 1, 2, 3, 4}, {5});
  const auto values = [&](int64_t start, int64_t end, int64_t step) {
    return slice(x, 0, start, end, step).to_vector<int32_t>();
  };
  CHECK(values(0, 5, 2) == std::vector<int32_t>{0, 2, 4});
  CHECK(values(1, 5, 3) == std::vector<int32_t>{1, 4});
  CHECK(values(-2, -1, 1) == std::vector<int32_t>{3});
  CHECK(values(1, 5, std::numeric_limits<int64_t>::max()) == std::vector<int32_t>{1});
  CHECK(values(5, 5, 1).empty());
  CHECK(values(2, 2, 7).empty());
  CHECK(slice(zeros({3, 0}), 0, 1, 3).shape() == Shape{2, 0});
}

TEST_CASE("reshape: a view where strides permit, a copy where they do not") {
  const Tensor x = random_uniform({4, 6, 5}, 1);
  const auto is_view = [&](const Tensor& view, const Shape& shape) {
    const Tensor y = reshape(view, shape);
    CHECK(same_bits(y, view.clone().view(y.shape(), contiguous_strides(y.shape()))));
    return y.storage() == x.storage();
  };
  CHECK(is_view(x, {8, -1}));
  CHECK(is_view(x, {1, 24, 1, 5, 1}));
  CHECK(is_view(slice(x, 1, 0, 4), {4, 2, 2, 5}));
  CHECK(is_view(slice(x, 1, 0, 4), {2, 2, 20}));
  CHECK_FALSE(is_view(slice(x, 1, 0, 4), {16, 5}));
  CHECK_FALSE(is_view(slice(x, 2, 0, 4), {4, 24}));
  CHECK(is_view(transpose(x, 0, 2), {5, 3, 2, 2, 2}));
  CHECK_FALSE(is_view(transpose(x, 0, 2), {30, 4}));
  CHECK(is_view(transpose(reshape(x, {4, 1, 30}), 0, 1), {120}));
  CHECK(is_view(slice(x, 0, 0, 4, 3), {1, 2, 30}));
  CHECK(is_view(expand(select(x, 0, 1), {3, 6, 5}), {3, 30}));
  CHECK_FALSE(is_view(expand(select(x, 0, 1), {3, 6, 5}), {18, 5}));
}

TEST_CASE("reshape: random views keep the row-major order of their elements") {
  RandomStream random(7, 1);
  for (int trial = 0; trial < 300; ++trial) {
    Tensor x = random_uniform({2, 3, 4, 6}, 5);
    for (int step = 0; step < 3; ++step) {
      const int axis = static_cast<int>(random.below(4)), other = static_cast<int>(random.below(4));
      if (random.below(2) == 0) {
        x = transpose(x, axis, other);
      } else {
        x = slice(x, axis, static_cast<int64_t>(random.below(2)) % std::max<int64_t>(1, x.dim(axis)), x.dim(axis),
                  1 + random.below(2));
      }
    }
    Shape shape;  // a random factorisation of the number of elements
    int64_t left = x.numel();
    while (left > 1 && shape.ndim() < 7) {
      const auto factor = static_cast<int64_t>(1 + random.below(4));
      if (left % factor != 0) continue;
      shape.push_back(factor);
      left /= factor;
    }
    shape.push_back(-1);
    const Tensor y = reshape(x, shape);
    CAPTURE(to_string(x.shape()));
    CAPTURE(to_string(x.strides()));
    CAPTURE(to_string(shape));
    CHECK(y.to_vector<double>() == x.to_vector<double>());
  }
}

TEST_CASE("view: gradients of several parts of one tensor add up") {
  const auto parts = [](const Tensors& in) {
    const Tensor& x = in[0];
    return Tensors{concat({slice(x, 1, 0, 4), slice(x, 1, 2, 6), slice(x, 1, 0, 6, 2), unsqueeze(select(x, 1, 3), 1),
                           transpose(reshape(x, {6, 4}), 0, 1), expand(slice(x, 1, 5, 6), {4, 3}), x},
                          1)};
  };
  CHECK(gradcheck(parts, {random_uniform({4, 6}, 2)}, {true}) == "");
  const auto parts_of_result = [&](const Tensors& in) { return parts({permute(reshape(in[0], {6, 4}), {1, 0})}); };
  CHECK(gradcheck(parts_of_result, {random_uniform({24}, 2)}, {true}) == "");
}

TEST_CASE("slice: gradients of later slices are added to the first one's buffer") {
  Tensor x = random_uniform({64, 1024}, 2);
  x.set_requires_grad();
  std::vector<Tensor> parts;
  for (int64_t i = 0; i < 16; ++i) parts.push_back(slice(x, 0, 4 * i, 4 * i + 4));
  const Tensor y = concat(parts, 0), dy = random_uniform({64, 1024}, 3);
  CachingAllocator& allocator = backend({}).allocator();
  allocator.reset_peak();
  const int64_t before = allocator.counters().live, bytes = x.numel() * 8;
  y.backward(dy);
  CHECK(same_bits(x.grad(), dy));
  CHECK(allocator.counters().peak - before < bytes + bytes / 4);
}

TEST_CASE("view: one recorded op each, and none for tensors without a gradient") {
  Tensor x = random_uniform({2, 3}, 1);
  CHECK(debug::count_nodes(slice(x, 0, 0, 1)) == 0);
  x.set_requires_grad();
  CHECK(debug::count_nodes(flatten(unsqueeze(select(expand(x, {4, 2, 3}), 0, 1), 0))) == 4);
  CHECK_FALSE(slice(from_values<int32_t>({1, 2}, {2}), 0, 0, 1).requires_grad());
}

TEST_CASE("view: errors name the op, the argument and both sides") {
  const Tensor x = zeros({2, 3, 4});
  CHECK(op_error([&] {
          reshape(x, {5, -1});
        }) == "reshape: shape must be a shape (with at most one -1) of the 24 elements of x f32[2,3,4], got [5,-1]");
  for (const Shape& shape : {Shape{-1, -1}, Shape{25}, Shape{-2, -12}, Shape{0, -1}, Shape{int64_t{1} << 62, 8}})
    CHECK(op_error([&] { reshape(x, shape); }).starts_with("reshape: shape must be"));
  CHECK(op_error([&] { reshape(zeros({0, 3}), {0, -1}); }).starts_with("reshape: shape must be"));
  CHECK(op_error([&] { reshape(Tensor(), {1}); }) == "reshape: x must be a tensor, got none");
  CHECK(op_error([&] { flatten(x, 2, 1); }) == "flatten: last_axis must be at or behind axis 2 of f32[2,3,4], got 1");
  CHECK(op_error([&] { squeeze(x, 0); }) == "squeeze: axis must be an axis of size 1 of f32[2,3,4], got 0");
  CHECK(op_error([&] { unsqueeze(x, 4); }) == "unsqueeze: axis must be from -4 to 3 for f32[2,3,4], got 4");
  CHECK(op_error([&] {
          unsqueeze(zeros({1, 1, 1, 1, 1, 1, 1, 1}), 0);
        }).starts_with("unsqueeze: x must be of less than 8"));
  CHECK(op_error([&] { transpose(x, 0, 3); }) == "transpose: axis must be an axis of f32[2,3,4], got 3");
  CHECK(op_error([&] { permute(x, {0, 1}); }) == "permute: axes must be each axis of f32[2,3,4] once, got [0,1]");
  CHECK(op_error([&] {
          permute(x, {0, 1, -2});
        }) == "permute: axes must be each axis of f32[2,3,4] once, got [0,1,-2]");
  CHECK(op_error([&] { slice(x, 1, 4, 4); }) ==
        "slice: start must be in the 3 elements of axis 1 of f32[2,3,4], got 4");
  CHECK(op_error([&] { slice(x, 1, 2, 1); }) ==
        "slice: end must be from start 2 to 3, the size of axis 1 of f32[2,3,4], got 1");
  CHECK(op_error([&] { slice(x, 1, 0, 4); }).starts_with("slice: end must be"));
  CHECK(op_error([&] { slice(x, 1, 0, 3, 0); }) == "slice: step must be at least 1, got 0");
  CHECK(op_error([&] { select(x, -1, 4); }) ==
        "select: index must be one of the 4 elements of axis -1 of f32[2,3,4], got 4");
  CHECK(op_error([&] { select(zeros({0}), 0, 0); }).starts_with("select: index must be"));
  CHECK(op_error([&] {
          expand(x, {2, 5, 4});
        }) == "expand: shape must be a shape to which x f32[2,3,4] broadcasts, got [2,5,4]");
  for (const Shape& shape : {Shape{3, 4}, Shape{-1, 2, 3, 4}, Shape{2, 3, -2}})
    CHECK(op_error([&] { expand(x, shape); }).starts_with("expand: shape must be"));
}

}  // namespace margay::test
