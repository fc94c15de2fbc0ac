// wkv against its definition in plain f64 loops, gradients of f32 against f64, and what the op table cannot express:
// keys of any size, causality and parts of a sequence to the bit, and what is refused.

#include "ops/wkv.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "engine/parallel.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

struct Case {
  int64_t batch, length, channels;
  double key_size = 2;
};

Wkv inputs_of(const Case& c, DType dtype) {
  const Shape rows{c.batch, c.length, c.channels};
  return {random_uniform({c.channels}, 1, -1, -0.001, dtype), random_uniform({c.channels}, 2, -1, 1, dtype),
          random_uniform(rows, 3, -c.key_size, c.key_size, dtype), random_uniform(rows, 4, -1, 1, dtype)};
}

// The sums themselves, for keys that leave them in range.
Elements reference(const Case& c, const Wkv& in) {
  const Elements w(in.w), u(in.u), k(in.k), v(in.v);
  Elements y(in.k.shape());
  for (int64_t b = 0; b < c.batch; ++b)
    for (int64_t channel = 0; channel < c.channels; ++channel) {
      double numerator = 0, denominator = 0;
      for (int64_t t = 0; t < c.length; ++t) {
        const double key = k({b, t, channel}), value = v({b, t, channel}), own = std::exp(u({channel}) + key);
        y({b, t, channel}) = (numerator + own * value) / (denominator + own);
        numerator = std::exp(w({channel})) * numerator + std::exp(key) * value;
        denominator = std::exp(w({channel})) * denominator + std::exp(key);
      }
    }
  return y;
}

// y and all gradients under a random cotangent.
Tensors run(Wkv in) {
  for (Tensor* tensor : {&in.w, &in.u, &in.k, &in.v}) *tensor = tensor->detach().set_requires_grad();
  const Tensor y = wkv(in)[0];
  y.backward(random_uniform(y.shape(), 50, -1, 1, in.k.dtype()));
  return {y.detach(), in.w.grad(), in.u.grad(), in.k.grad(), in.v.grad()};
}

}  // namespace

TEST_CASE("wkv equals its definition") {
  const auto check = [](const Case& c) {
    CAPTURE(c.length);
    CAPTURE(c.channels);
    const Tensor expected = reference(c, inputs_of(c, DType::f64)).to_tensor(DType::f64);
    CHECK(difference(wkv(inputs_of(c, DType::f64))[0], expected, 1e-12) == "");
    CHECK(difference(wkv(inputs_of(c, DType::f32))[0], expected, 1e-5) == "");
  };
  for (const int64_t length : {1, 2, 3, 7, 64, 1000}) check({2, length, 5});
  for (const int64_t channels : {1, 15, 16, 17, 40}) check({3, 9, channels});
  check({40, 3, 20});
  check({1, 70, 3, 100});
}

TEST_CASE("wkv: gradients of f32 agree with f64") {
  for (const Case& c : {Case{1, 1000, 3}, Case{3, 130, 40}, Case{2, 70, 20, 15}}) {
    const Tensors expected = run(inputs_of(c, DType::f64)), got = run(inputs_of(c, DType::f32));
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(i);
      CHECK(difference_relative_to_max(got[i], expected[i], 3e-5) == "");
    }
  }
}

TEST_CASE("wkv: keys beyond the range of the exponential choose values, and give finite gradients") {
  Wkv in{from_values<float>({-0.5f}, {1}), zeros({1}), from_values<float>({1e4f, -1e4f, 3e4f, 2e4f}, {1, 4, 1}),
         from_values<float>({1, 2, 3, 4}, {1, 4, 1})};
  const Tensors results = run(in);
  CHECK(results[0].to_vector<float>() == std::vector<float>{1, 1, 3, 3});
  for (const Tensor& result : results)
    for (const float value : result.to_vector<float>()) CHECK(std::isfinite(value));
}

TEST_CASE("wkv: a token changes nothing before it, not even by a bit, not even as NaN") {
  const Case c{2, 80, 20};
  const Tensor before = wkv(inputs_of(c, DType::f32))[0];
  for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN()}) {
    for (const int64_t t : {1, 7, 63, 64, 79}) {
      const Wkv in = inputs_of(c, DType::f32);
      for (const Tensor& tensor : {in.k, in.v}) slice(tensor, 1, t, c.length).fill(poison);
      const Tensor after = wkv(in)[0];
      CHECK(same_bits(slice(after, 1, 0, t), slice(before, 1, 0, t)));
      CHECK_FALSE(same_bits(slice(after, 1, t, t + 1), slice(before, 1, t, t + 1)));
    }
  }
}

TEST_CASE("wkv of a sequence in parts gives the bits of the whole") {
  const Case c{2, 150, 20};
  const Wkv in = inputs_of(c, DType::f32);
  const Tensors whole = wkv(in);
  Tensor state;
  for (int64_t begin = 0, end; begin < c.length; begin = end) {
    end = std::min(c.length, begin + 1 + begin % 70);
    const Tensors part = wkv({in.w, in.u, slice(in.k, 1, begin, end), slice(in.v, 1, begin, end), state});
    CHECK(same_bits(part[0], slice(whole[0], 1, begin, end)));
    state = part[1];
  }
  CHECK(same_bits(state, whole[1]));
}

TEST_CASE("wkv: the number of threads does not change a bit") {
  const int before = num_threads();
  for (const Case& c : {Case{40, 70, 20}, Case{1, 130, 300}}) {
    const Wkv in = inputs_of(c, DType::f32);
    set_num_threads(1);
    const Tensors expected = run(in);
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      const Tensors got = run(in);
      for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

TEST_CASE("wkv says what is wrong with its arguments") {
  const auto t = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype); };
  const Tensor k = t({2, 5, 6}), c = t({6});
  CHECK(op_error([&] { wkv({c, c, {}, k}); }) == "wkv: k must be of a float dtype, got none");
  CHECK(op_error([&] { wkv({c, c, c, k}); }) == "wkv: k must be [B,L,C], got f32[6]");
  CHECK(op_error([&] { wkv({t({5}), c, k, k}); }) == "wkv: w must be [C] for k f32[2,5,6], got f32[5]");
  CHECK(op_error([&] { wkv({c, t({1}), k, k}); }) == "wkv: u must be [C] for k f32[2,5,6], got f32[1]");
  CHECK(op_error([&] { wkv({c, c, k, t({2, 5, 1})}); }) == "wkv: v must be [B,L,C] for k f32[2,5,6], got f32[2,5,1]");
  CHECK(op_error([&] {
          wkv({c, c, k, k, t({2, 6})});
        }) == "wkv: initial must be [B,3,C] for k f32[2,5,6], got f32[2,6]");
  CHECK(op_error([&] { wkv({c, c, k, t({2, 5, 6}, DType::f64)}); }) != "");
}

}  // namespace margay::test
