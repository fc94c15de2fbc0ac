#include "ops/concat.h"

#include <doctest/doctest.h>

#include "engine/debug.h"
#include "engine/profiler.h"
#include "ops/causal_attention.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/gradcheck.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::i32, DType::i64, DType::boolean};

Tensor small_integers(const Shape& shape, uint64_t seed, DType dtype) {
  return random_uniform(shape, seed, -50, 50).to(DType::i32).to(dtype);
}

}  // namespace

TEST_CASE("concat, stack: elements stand where the definition says") {
  for (const DType dtype : kDTypes) {
    CAPTURE(name_of(dtype));
    const Tensor a = small_integers({2, 3, 4}, 1, dtype), b = as_strided_copy(small_integers({2, 2, 4}, 2, dtype));
    const Tensor c = small_integers({2, 3, 4}, 3, dtype);
    const Elements ea(a), eb(b), ec(c);
    CHECK(same_bits(
        concat({a, b, c}, -2), from_function({2, 8, 4}, dtype, [&](const Index& i) {
          return i[1] < 3 ? ea({i[0], i[1], i[2]}) : i[1] < 5 ? eb({i[0], i[1] - 3, i[2]}) : ec({i[0], i[1] - 5, i[2]});
        })));
    CHECK(same_bits(stack({a, c}, 1), from_function({2, 2, 3, 4}, dtype, [&](const Index& i) {
                      return (i[1] == 0 ? ea : ec)({i[0], i[2], i[3]});
                    })));
    CHECK(same_bits(stack({a, c}, -1), from_function({2, 3, 4, 2}, dtype, [&](const Index& i) {
                      return (i[3] == 0 ? ea : ec)({i[0], i[1], i[2]});
                    })));
  }
}

TEST_CASE("concat: parts whose rows are unevenly spaced, repeated or not contiguous") {
  const Tensor x = random_uniform({4, 6, 3, 2}, 1), row = random_uniform({3, 2}, 2);
  const Tensor parts[] = {slice(x, 1, 1, 4), slice(transpose(x, 0, 1), 1, 0, 3, 2), slice(x, 0, 0, 3),
                          expand(row, {4, 3, 3, 2}), transpose(slice(x, 1, 0, 3), 2, 3)};
  for (const Tensor& part : parts) {
    for (const int axis : {0, 1, 2, 3}) {
      CAPTURE(to_string(part.strides()));
      CAPTURE(axis);
      const Tensor other = random_uniform(part.shape().with(axis, 2), 3);
      CHECK(same_bits(concat({part, other}, axis), concat({part.clone(), other}, axis)));
      CHECK(same_bits(slice(concat({other, part}, axis), axis, 2, 2 + part.dim(axis)), part));
    }
  }
}

TEST_CASE("split, chunk: views that put together give the tensor again") {
  for (const DType dtype : kDTypes) {
    CAPTURE(name_of(dtype));
    const Tensor x = small_integers({3, 6, 2}, 4, dtype);
    const Tensors parts = split(x, 1, {1, 0, 5}), halves = chunk(transpose(x, 0, 1), 0, 2);
    CHECK(parts.size() == 3);
    CHECK(parts[1].shape() == Shape{3, 0, 2});
    for (const Tensor& part : parts) CHECK(part.storage() == x.storage());
    CHECK(same_bits(parts[2], slice(x, 1, 1, 6)));
    CHECK(same_bits(concat(parts, 1), x));
    CHECK(halves.size() == 2);
    CHECK(same_bits(concat(halves, 0), transpose(x, 0, 1)));
  }
}

TEST_CASE("split: one recorded op, whose gradient is zero where no cotangent arrives") {
  Tensor x = random_uniform({2, 6}, 1);
  x.set_requires_grad();
  const Tensors parts = split(x, 1, {1, 2, 3});
  CHECK(debug::count_nodes(concat(parts, 1)) == 2);
  const Tensor dy = random_uniform({2, 2}, 2);
  parts[1].backward(dy);
  CHECK(same_bits(x.grad(), concat({zeros({2, 1}, DType::f64), dy, zeros({2, 3}, DType::f64)}, 1)));
}

TEST_CASE("split: gradients from several places add up") {
  const auto call = [](const Tensors& in) {
    const Tensor& x = in[0];
    const Tensors first = split(x, 1, {2, 1, 3}), second = chunk(x, 1, 2), third = chunk(reshape(x, {4, 3}), 0, 2);
    return Tensors{concat({first[2], slice(x, 1, 1, 4), second[0], first[0], x, second[0], third[1]}, 1)};
  };
  CHECK(gradcheck(call, {random_uniform({2, 6}, 3)}, {true}) == "");
}

TEST_CASE("chunk: the gradients of queries, keys and values are not copied, as they lie side by side") {
  Tensor x = random_uniform({2, 5, 18}, 1);
  x.set_requires_grad();
  const auto attend = [](const Tensor& packed) {
    const auto heads = [](const Tensor& t) { return transpose(reshape(t, {2, 5, 2, 3}), 1, 2); };
    const Tensors qkv = chunk(packed, -1, 3);
    return causal_attention(heads(qkv[0]), heads(qkv[1]), heads(qkv[2]), {}, {.scale = 0.5});
  };
  const Tensor y = attend(x), dy = random_uniform({2, 2, 5, 3}, 2);
  {
    const Profiler profiler({});
    y.backward(dy);
    for (const ProfileEvent& event : profiler.events()) {
      const bool copies = event.parent >= 0 && profiler.events()[static_cast<size_t>(event.parent)].name == "chunk";
      CHECK_FALSE(copies);
    }
  }
  CHECK(gradcheck([&](const Tensors& in) { return Tensors{attend(in[0])}; }, {x.detach()}, {true}) == "");
}

TEST_CASE("chunk: gradients side by side in another order are put in order") {
  const auto call = [](const Tensors& in) {
    const Tensors parts = chunk(in[0], -1, 3);
    return Tensors{concat({parts[1], parts[0], parts[2]}, -1)};
  };
  CHECK(gradcheck(call, {random_uniform({2, 6}, 3)}, {true}) == "");
}

TEST_CASE("split: the gradient is added to one that is there") {
  Tensor x = random_uniform({256, 256}, 2);
  x.set_requires_grad();
  const Tensors first = chunk(x, 1, 2), second = chunk(x, 1, 4);
  const Tensor y = concat({first[0], first[1], second[3], second[2], second[1], second[0]}, 1);
  const Tensor dy = random_uniform({256, 512}, 3);
  CachingAllocator& allocator = backend({}).allocator();
  allocator.reset_peak();
  const int64_t before = allocator.counters().live, bytes = x.numel() * 8;
  y.backward(dy);
  CHECK(allocator.counters().peak - before < bytes + bytes / 4);
  const Elements e(dy);
  CHECK(difference(x.grad(),
                   from_function(x.shape(), DType::f64,
                                 [&](const Index& i) {
                                   return e(i) + e({i[0], 448 - i[1] / 64 * 64 + i[1] % 64});
                                 }),
                   1e-15) == "");
}

TEST_CASE("concat: only what needs a gradient gets one") {
  Tensor a = random_uniform({2, 3}, 1);
  const Tensor b = random_uniform({2, 3}, 2), dy = random_uniform({4, 3}, 3);
  a.set_requires_grad();
  concat({b, a}, 0).backward(dy);
  CHECK(same_bits(a.grad(), slice(dy, 0, 2, 4)));
  a.zero_grad();
  concat({a, a}, 0).backward(dy);
  CHECK(a.grad().to_vector<double>()[4] == dy.to_vector<double>()[4] + dy.to_vector<double>()[10]);
}

TEST_CASE("concat, stack, split, chunk: errors") {
  const Tensor x = zeros({2, 6});
  CHECK(op_error([] { concat({}, 0); }) == "concat: tensors must be at least 1, got 0");
  CHECK(op_error([&] {
          concat({x, zeros({3, 6})}, 1);
        }) == "concat: tensors must be of the sizes of tensors[0] f32[2,6] but for axis 1, got f32[3,6]");
  CHECK(op_error([&] { concat({x, zeros({6})}, 0); }).starts_with("concat: tensors must be of the sizes"));
  CHECK(op_error([&] {
          concat({x, zeros({2, 6}, DType::f64)}, 1);
        }) == "concat: tensors must be of the dtype and device of tensors[0] f32[2,6], got f64[2,6]");
  CHECK(op_error([&] { concat({x, Tensor()}, 1); }).ends_with("got none"));
  CHECK(op_error([&] { concat({x}, 2); }) == "concat: axis must be an axis of f32[2,6], got 2");
  CHECK(op_error([] { stack({}, 0); }) == "stack: tensors must be at least 1, got 0");
  CHECK(op_error([&] {
          stack({x, zeros({2, 5})}, 0);
        }) == "stack: tensors must be of the shape of tensors[0] f32[2,6], got f32[2,5]");
  CHECK(op_error([&] { stack({x, x}, 3); }) == "stack: axis must be from -3 to 2 for tensors f32[2,6], got 3");
  CHECK(op_error([&] {
          split(x, 1, {2, 3});
        }) == "split: sizes must be sizes with the sum 6, the size of axis 1 of f32[2,6], got [2,3]");
  CHECK(op_error([&] { split(x, 1, {7, -1}); }).starts_with("split: sizes must be"));
  CHECK(op_error([&] { split(x, 1, {}); }).starts_with("split: sizes must be"));
  CHECK(op_error([&] { chunk(x, 1, 4); }) == "chunk: n must be a divisor of 6, the size of axis 1 of f32[2,6], got 4");
  CHECK(op_error([&] { chunk(x, 1, 0); }).starts_with("chunk: n must be"));
  CHECK(op_error([] { chunk(Tensor(), 1, 2); }) == "chunk: x must be a tensor, got none");
}

}  // namespace margay::test
