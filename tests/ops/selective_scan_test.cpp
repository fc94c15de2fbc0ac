// selective_scan against its recurrence in plain f64 loops, gradients included, and what the op table cannot express:
// causality and parts of a sequence to the bit, views as inputs, long decays, and what is refused.

#include "ops/selective_scan.h"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "engine/parallel.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"
#include "tests/support/selective_scan_case.h"

namespace margay::test {
namespace {

using Case = SelectiveScanCase;

SelectiveScan inputs_of(const Case& c, DType dtype) {
  return inputs_of(c, [&](const Shape& shape, uint64_t seed, double low, double high) {
    return random_uniform(shape, seed, low, high, dtype);
  });
}

struct Expected {
  Elements y, state;
};

// The recurrence, token by token.
Expected reference(const Case& c, const SelectiveScan& in) {
  const Elements u(in.u), delta(in.delta), A(in.A), B(in.B), C(in.C);
  Expected result{Elements(in.u.shape()), Elements(Shape{c.batch, c.E, c.N})};
  if (!c.bare) result.state = Elements(in.initial);
  for_each_index(in.u.shape(), [&](const Index& at) {
    const int64_t b = at[0], t = at[1], e = at[2];
    double step = delta(at), sum = 0;
    if (!c.bare) step = std::log1p(std::exp(step + Elements(in.delta_bias)({e})));
    for (int64_t n = 0; n < c.N; ++n) {
      double& h = result.state({b, e, n});
      h = std::exp(step * A({e, n})) * h + step * B({b, t, n}) * u(at);
      sum += C({b, t, n}) * h;
    }
    if (!c.bare) {
      const double z = Elements(in.z)(at);
      sum = (sum + Elements(in.D)({e}) * u(at)) * z / (1 + std::exp(-z));
    }
    result.y(at) = sum;
  });
  return result;
}

void set_requires_grad(SelectiveScan& in) {
  for (Tensor* tensor : {&in.u, &in.delta, &in.A, &in.B, &in.C, &in.D, &in.z, &in.delta_bias, &in.initial})
    if (tensor->defined()) *tensor = tensor->detach().set_requires_grad();
}

// {y, final states} and all gradients under random cotangents.
Tensors run(SelectiveScan in) {
  set_requires_grad(in);
  const Tensors results = selective_scan(in);
  const DType dtype = in.u.dtype();
  results[0].backward(random_uniform(results[0].shape(), 50, -1, 1, dtype), true);
  results[1].backward(random_uniform(results[1].shape(), 51, -1, 1, dtype));
  Tensors all{results[0].detach(), results[1].detach()};
  for (const Tensor& tensor : {in.u, in.delta, in.A, in.B, in.C, in.D, in.z, in.delta_bias, in.initial})
    all.push_back(tensor.defined() ? tensor.grad() : Tensor());
  return all;
}

SelectiveScan part_of(const SelectiveScan& in, int64_t begin, int64_t end, const Tensor& initial) {
  SelectiveScan part = in;
  for (Tensor* tensor : {&part.u, &part.delta, &part.B, &part.C, &part.z})
    if (tensor->defined()) *tensor = slice(*tensor, 1, begin, end);
  part.initial = initial;
  return part;
}

}  // namespace

TEST_CASE("selective scan equals its recurrence") {
  const auto check = [](const Case& c) {
    CAPTURE(c.length);
    CAPTURE(c.E);
    CAPTURE(c.N);
    const Expected expected = reference(c, inputs_of(c, DType::f64));
    for (const DType dtype : {DType::f64, DType::f32}) {
      const Tensors got = selective_scan(inputs_of(c, dtype));
      const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-5;
      CHECK(difference_relative_to_max(got[0], expected.y.to_tensor(DType::f64), tolerance) == "");
      CHECK(difference_relative_to_max(got[1], expected.state.to_tensor(DType::f64), tolerance) == "");
    }
  };
  for (const int64_t length : {1, 2, 3, 7, 64, 1000})
    for (const bool bare : {false, true}) check({2, length, 3, 4, bare});
  for (const int64_t E : {1, 15, 16, 17, 40})
    for (const int64_t N : {1, 5, 16}) check({2, 9, E, N});
  check({40, 3, 20, 3});
}

TEST_CASE("selective scan: gradients of f32 agree with f64, over long sequences and many channels") {
  for (const Case& c : {Case{1, 1000, 3, 4}, Case{3, 130, 40, 16}, Case{1, 70, 130, 3, true}}) {
    const Tensors expected = run(inputs_of(c, DType::f64)), got = run(inputs_of(c, DType::f32));
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(i);
      if (got[i].defined()) CHECK(difference_relative_to_max(got[i], expected[i], 2e-5) == "");
    }
  }
}

TEST_CASE("selective scan: a token changes nothing before it, not even by a bit, not even as NaN") {
  const Case c{2, 80, 20, 5};
  const Tensor before = selective_scan(inputs_of(c, DType::f32))[0];
  for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN()}) {
    for (const int64_t t : {1, 7, 63, 64, 79}) {
      const SelectiveScan in = inputs_of(c, DType::f32);
      for (const Tensor& tensor : {in.u, in.delta, in.B, in.C, in.z}) slice(tensor, 1, t, c.length).fill(poison);
      const Tensor after = selective_scan(in)[0];
      CHECK(same_bits(slice(after, 1, 0, t), slice(before, 1, 0, t)));
      CHECK_FALSE(same_bits(slice(after, 1, t, t + 1), slice(before, 1, t, t + 1)));
    }
  }
}

TEST_CASE("selective scan of a sequence in parts gives the bits of the whole") {
  const Case c{2, 150, 20, 6};
  const SelectiveScan in = inputs_of(c, DType::f32);
  const Tensors whole = selective_scan(in);
  Tensor state = in.initial;
  for (int64_t begin = 0, end; begin < c.length; begin = end) {
    end = std::min(c.length, begin + 1 + begin % 70);
    const Tensors part = selective_scan(part_of(in, begin, end, state));
    CHECK(same_bits(part[0], slice(whole[0], 1, begin, end)));
    state = part[1];
  }
  CHECK(same_bits(state, whole[1]));
}

TEST_CASE("selective scan: states that decay within one step leave no NaN") {
  SelectiveScan in = inputs_of({1, 20, 5, 3, true}, DType::f32);
  in.A.fill(-1e30);
  in.delta.fill(100);
  for (const Tensor& result : run(in))
    if (result.defined())
      for (const float value : result.to_vector<float>()) CHECK(std::isfinite(value));
}

TEST_CASE("selective scan: the number of threads does not change a bit") {
  const int before = num_threads();
  for (const Case& c : {Case{40, 70, 20, 3}, Case{1, 130, 300, 16}}) {
    const SelectiveScan in = inputs_of(c, DType::f32);
    set_num_threads(1);
    const Tensors expected = run(in);
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      const Tensors got = run(in);
      for (size_t i = 0; i < got.size(); ++i)
        if (got[i].defined()) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

TEST_CASE("selective scan says what is wrong with its arguments") {
  const auto t = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype); };
  const SelectiveScan good{t({2, 5, 6}), t({2, 5, 6}), t({6, 3}), t({2, 5, 3}), t({2, 5, 3})};
  const auto error = [&](const auto& change) {
    SelectiveScan in = good;
    change(in);
    return op_error([&] { selective_scan(in); });
  };
  CHECK(error([](SelectiveScan&) {}) == "");
  CHECK(error([&](SelectiveScan& in) { in.u = {}; }) == "selective_scan: u must be of a float dtype, got none");
  CHECK(error([&](SelectiveScan& in) { in.u = t({5, 6}); }) == "selective_scan: u must be [B,L,E], got f32[5,6]");
  CHECK(error([&](SelectiveScan& in) {
          in.A = t({5, 3});
        }) == "selective_scan: A must be [E,N], E = last axis of u f32[2,5,6], got f32[5,3]");
  const std::string of = " for u f32[2,5,6] and A f32[6,3], got ";
  CHECK(error([&](SelectiveScan& in) {
          in.delta = t({2, 5, 1});
        }) == "selective_scan: delta must be [B,L,E]" + of + "f32[2,5,1]");
  CHECK(error([&](SelectiveScan& in) {
          in.B = t({2, 5, 4});
        }) == "selective_scan: B must be [B,L,N]" + of + "f32[2,5,4]");
  CHECK(error([&](SelectiveScan& in) {
          in.C = t({2, 4, 3});
        }) == "selective_scan: C must be [B,L,N]" + of + "f32[2,4,3]");
  CHECK(error([&](SelectiveScan& in) { in.D = t({3}); }) == "selective_scan: D must be [E]" + of + "f32[3]");
  CHECK(error([&](SelectiveScan& in) {
          in.z = t({2, 5, 3});
        }) == "selective_scan: z must be [B,L,E]" + of + "f32[2,5,3]");
  CHECK(error([&](SelectiveScan& in) {
          in.initial = t({2, 3, 6});
        }) == "selective_scan: initial must be [B,E,N]" + of + "f32[2,3,6]");
  CHECK(error([&](SelectiveScan& in) { in.C = t({2, 5, 3}, DType::f64); }) != "");
}

}  // namespace margay::test
