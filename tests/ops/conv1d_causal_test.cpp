// conv1d_causal against plain loops in f64, its gradients included, and what the op table cannot express: causality and
// step-by-step use to the bit, views as inputs, and what is refused.

#include "ops/conv1d_causal.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>

#include "engine/parallel.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

struct Case {
  int64_t B, L, C, W;
  int64_t filters;  // 0: weight [W]
  bool bias = false, initial = false;
};

struct Inputs {
  Tensor x, weight, bias, initial, dy;
};

// x and dy are slices of wider buffers.
Inputs inputs_of(const Case& c, DType dtype) {
  const auto slice_of = [&](uint64_t seed) {
    const Tensor wide = random_uniform({c.B, c.L, c.C + 5}, seed, -1, 1, dtype);
    return wide.view({c.B, c.L, c.C}, wide.strides(), 3);
  };
  const Shape weight = c.filters > 0 ? Shape{c.filters, c.W} : Shape{c.W};
  return {slice_of(1), random_uniform(weight, 2, -1, 1, dtype),
          c.bias ? random_uniform({c.C}, 3, -1, 1, dtype) : Tensor(),
          c.initial ? random_uniform({c.B, c.W - 1, c.C}, 4, -1, 1, dtype) : Tensor(), slice_of(5)};
}

// y, dx, dweight, dbias, dinitial.
Tensors reference(const Case& c, const Inputs& in) {
  const Elements x(in.x), weight(in.weight), dy(in.dy), initial(c.initial ? in.initial : zeros({c.B, c.W - 1, c.C}));
  Elements y(in.x.shape()), dx(in.x.shape()), dweight(in.weight.shape()), dbias(Shape{c.C});
  Elements dinitial(Shape{c.B, c.W - 1, c.C});
  for_each_index(in.x.shape(), [&](const Index& at) {
    const int64_t b = at[0], t = at[1], channel = at[2];
    if (c.bias) y(at) = Elements(in.bias)({channel});
    dbias({channel}) += dy(at);
    for (int64_t w = 0; w < c.W; ++w) {
      const Index tap = c.filters > 0 ? Index{channel / (c.C / c.filters), w} : Index{w};
      const bool inside = t >= w;
      const Index source = inside ? Index{b, t - w, channel} : Index{b, c.W - 1 + t - w, channel};
      const double value = inside ? x(source) : initial(source);
      y(at) += weight(tap) * value;
      dweight(tap) += dy(at) * value;
      (inside ? dx : dinitial)(source) += weight(tap) * dy(at);
    }
  });
  const auto tensor = [](const Elements& elements) { return elements.to_tensor(DType::f64); };
  return {tensor(y), tensor(dx), tensor(dweight), tensor(dbias), tensor(dinitial)};
}

// The result and the gradients of all inputs.
Tensors run(const Case& c, const Inputs& in) {
  Tensors leaves{in.x.detach(), in.weight.detach(), c.bias ? in.bias.detach() : Tensor(),
                 c.initial ? in.initial.detach() : Tensor()};
  for (Tensor& leaf : leaves)
    if (leaf.defined()) leaf.set_requires_grad();
  const Tensor y = conv1d_causal(leaves[0], leaves[1], leaves[2], leaves[3]);
  y.backward(in.dy);
  Tensors results{y.detach()};
  for (const Tensor& leaf : leaves) results.push_back(leaf.defined() ? leaf.grad() : Tensor());
  return results;
}

void check_against_reference(const Case& c) {
  CAPTURE(c.B);
  CAPTURE(c.L);
  CAPTURE(c.C);
  CAPTURE(c.W);
  CAPTURE(c.filters);
  const Tensors expected = reference(c, inputs_of(c, DType::f64));
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Tensors got = run(c, inputs_of(c, dtype));
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(i);
      if (got[i].defined()) CHECK(difference(got[i], expected[i], dtype == DType::f64 ? 1e-12 : 2e-5) == "");
    }
  }
}

Tensor rows(const Tensor& x, int64_t begin, int64_t end) {
  return x.view(x.shape().with(1, end - begin), x.strides(), begin * x.strides()[1]);
}

}  // namespace

TEST_CASE("causal convolution equals its definition, and so do its gradients") {
  for (const int64_t L : {1, 2, 3, 7, 33, 65, 130}) check_against_reference({2, L, 6, 4, 6, true, true});
  for (const int64_t C : {1, 2, 15, 16, 17, 48, 70}) check_against_reference({2, 20, C, 3, C, true});
  for (const int64_t W : {1, 2, 3, 4, 5, 8, 16, 21, 64, 100}) {
    check_against_reference({1, 70, 5, W, 5});
    check_against_reference({2, 70, 18, W, 0, true, true});
  }
  check_against_reference({3, 19, 24, 4, 3, true});
  check_against_reference({3, 19, 24, 4, 1, false, true});
  check_against_reference({1, 600, 3, 7, 3, true, true});  // several stretches of time
  check_against_reference({70, 3, 4, 2, 2, true, true});   // more sequences than pieces
}

TEST_CASE("causal convolution: a token changes nothing before it, not even by a bit, not even as NaN") {
  const Case c{2, 40, 20, 5, 20};
  const Tensor before = conv1d_causal(inputs_of(c, DType::f32).x, inputs_of(c, DType::f32).weight);
  for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN()}) {
    for (const int64_t t : {1, 7, 8, 9, 39}) {
      const Inputs in = inputs_of(c, DType::f32);
      rows(in.x, t, c.L).fill(poison);
      const Tensor after = conv1d_causal(in.x, in.weight);
      CHECK(same_bits(rows(after, 0, t), rows(before, 0, t)));
      CHECK_FALSE(same_bits(rows(after, t, t + 1), rows(before, t, t + 1)));
    }
  }
}

TEST_CASE("causal convolution of a sequence in parts gives the bits of the whole") {
  for (const int64_t W : {2, 4, 21}) {
    const Case c{2, 50, 20, W, 20, true};
    const Inputs in = inputs_of(c, DType::f32);
    const Tensor whole = conv1d_causal(in.x, in.weight, in.bias);
    const Tensor padded = zeros({c.B, W - 1 + c.L, c.C});
    rows(padded, W - 1, W - 1 + c.L).copy_from(in.x);
    for (int64_t begin = 0, end; begin < c.L; begin = end) {
      end = std::min(c.L, begin + 1 + begin % 7);
      const Tensor part = conv1d_causal(rows(in.x, begin, end), in.weight, in.bias, rows(padded, begin, begin + W - 1));
      CHECK(same_bits(part, rows(whole, begin, end)));
    }
  }
}

TEST_CASE("causal convolution: the number of threads does not change a bit") {
  const int before = num_threads();
  for (const Case& c : {Case{9, 300, 40, 4, 40, true, true}, Case{1, 900, 40, 30, 8, true, true}}) {
    const Inputs in = inputs_of(c, DType::f32);
    set_num_threads(1);
    const Tensors expected = run(c, in);
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      const Tensors got = run(c, in);
      for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

TEST_CASE("causal convolution says what is wrong with its arguments") {
  const auto t = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype); };
  const Tensor x = t({2, 5, 6});
  CHECK(op_error([&] { conv1d_causal({}, t({3})); }) == "conv1d_causal: x must be of a float dtype, got none");
  CHECK(op_error([&] { conv1d_causal(t({5, 6}), t({3})); }) == "conv1d_causal: x must be [B,L,C], got f32[5,6]");
  const std::string weight =
      "conv1d_causal: weight must be [W], [H,W] with C % H == 0 or [C,W], W > 0, C = last axis of x f32[2,5,6], got ";
  CHECK(op_error([&] { conv1d_causal(x, t({4, 3})); }) == weight + "f32[4,3]");
  CHECK(op_error([&] { conv1d_causal(x, t({0})); }) == weight + "f32[0]");
  CHECK(op_error([&] { conv1d_causal(x, t({0, 3})); }) == weight + "f32[0,3]");
  CHECK(op_error([&] { conv1d_causal(x, t({1, 6, 3})); }) == weight + "f32[1,6,3]");
  CHECK(op_error([&] { conv1d_causal(x, t({3}, DType::f64)); }) != "");
  CHECK(op_error([&] { conv1d_causal(x, t({3}), t({5})); }) ==
        "conv1d_causal: bias must be [C], C = last axis of x f32[2,5,6], got f32[5]");
  CHECK(op_error([&] {
          conv1d_causal(x, t({3}), {}, t({2, 3, 6}));
        }) == "conv1d_causal: initial must be [B,2,C] for x f32[2,5,6] and weight f32[3], got f32[2,3,6]");
}

}  // namespace margay::test
