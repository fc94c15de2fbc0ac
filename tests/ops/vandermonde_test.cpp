// vandermonde and ssm_steps against the sampled systems written out one state and one step at a time, in f64.

#include "ops/vandermonde.h"

#include <doctest/doctest.h>

#include <cmath>
#include <complex>

#include "engine/parallel.h"
#include "ops/fft_conv.h"
#include "tests/support/compare.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

using Number = std::complex<double>;

// Rates of all kinds: slow, fast, oscillating.
DiagonalSsm system_of(int64_t channels, int64_t pairs, Discretization discretization, DType dtype) {
  return {random_uniform({channels}, 1, -6, -1, DType::f32).to(dtype),
          random_uniform({channels, pairs, 2}, 2, -1, 1, DType::f32).to(dtype),
          random_uniform({channels, pairs}, 3, -2, 2, DType::f32).to(dtype),
          random_uniform({channels, pairs}, 4, -20, 20, DType::f32).to(dtype), discretization};
}

struct Sampled {
  Number power, output;
};
Sampled sampled(const DiagonalSsm& ssm, int64_t channel, int64_t pair) {
  const auto at = [](const Tensor& x, int64_t i) {
    return x.to(DType::f64).to_vector<double>()[static_cast<size_t>(i)];
  };
  const int64_t i = channel * ssm.A_imag.dim(1) + pair;
  const double dt = std::exp(at(ssm.log_dt, channel));
  const Number A(-std::exp(at(ssm.log_A_real, i)), at(ssm.A_imag, i)), C(at(ssm.C, 2 * i), at(ssm.C, 2 * i + 1));
  if (ssm.discretization == Discretization::zoh) return {std::exp(dt * A), C * (std::exp(dt * A) - 1.0) / A};
  return {(1.0 + dt * A / 2.0) / (1.0 - dt * A / 2.0), C * dt / (1.0 - dt * A / 2.0)};
}

Tensor reference(const DiagonalSsm& ssm, int64_t length) {
  const int64_t channels = ssm.C.dim(0), pairs = ssm.C.dim(1);
  std::vector<double> kernel(static_cast<size_t>(channels * length));
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t n = 0; n < pairs; ++n) {
      const Sampled s = sampled(ssm, c, n);
      Number term = s.output;
      for (int64_t l = 0; l < length; ++l, term *= s.power)
        kernel[static_cast<size_t>(c * length + l)] += 2 * term.real();
    }
  return from_values(kernel, {channels, length});
}

template <class Check>
void for_both(const Check& check) {
  for (const Discretization discretization : {Discretization::zoh, Discretization::bilinear}) check(discretization);
}

}  // namespace

TEST_CASE("vandermonde equals its sum at every length, in f64 and f32") {
  for_both([](Discretization discretization) {
    for (const int64_t length : {1, 2, 3, 7, 64, 1000}) {
      CAPTURE(length);
      const Tensor expected = reference(system_of(5, 7, discretization, DType::f32), length);
      CHECK(difference_relative_to_max(vandermonde(system_of(5, 7, discretization, DType::f64), length), expected,
                                       1e-12) == "");
      CHECK(difference_relative_to_max(vandermonde(system_of(5, 7, discretization, DType::f32), length), expected,
                                       3e-6) == "");
    }
  });
}

TEST_CASE("vandermonde: gradients in f32 equal those in f64, at every length") {
  for_both([](Discretization discretization) {
    for (const int64_t length : {1, 2, 3, 7, 64, 1000}) {
      CAPTURE(length);
      const auto gradients = [&](DType dtype) {
        DiagonalSsm ssm = system_of(5, 7, discretization, dtype);
        for (Tensor* parameter : {&ssm.log_dt, &ssm.C, &ssm.log_A_real, &ssm.A_imag}) parameter->set_requires_grad();
        vandermonde(ssm, length).backward(random_uniform({5, length}, 9, -1, 1, DType::f32).to(dtype));
        return Tensors{ssm.log_dt.grad(), ssm.C.grad(), ssm.log_A_real.grad(), ssm.A_imag.grad()};
      };
      const Tensors expected = gradients(DType::f64), got = gradients(DType::f32);
      for (size_t i = 0; i < got.size(); ++i) CHECK(difference_relative_to_max(got[i], expected[i], 1e-5) == "");
    }
  });
}

TEST_CASE("vandermonde: a pole at zero and powers that vanish") {
  // Bilinear with dt A = -2: Abar is exactly 0. Gradients stay finite, as the kernel is smooth there.
  DiagonalSsm ssm{from_values({0.0}, {1}), from_values({1.0, 0.5}, {1, 1, 2}), from_values({std::log(2.0)}, {1, 1}),
                  from_values({0.0}, {1, 1}), Discretization::bilinear};
  for (Tensor* parameter : {&ssm.log_dt, &ssm.C, &ssm.log_A_real, &ssm.A_imag}) parameter->set_requires_grad();
  const Tensor kernel = vandermonde(ssm, 600);
  const auto taps = kernel.detach().to_vector<double>();
  CHECK(taps[0] == doctest::Approx(1));
  for (size_t l = 1; l < taps.size(); ++l) CHECK(std::fabs(taps[l]) < 1e-15);
  kernel.backward(ones({1, 600}, DType::f64));
  for (const Tensor* parameter : {&ssm.log_dt, &ssm.C, &ssm.log_A_real, &ssm.A_imag})
    for (const double g : parameter->grad().to_vector<double>()) CHECK(std::isfinite(g));

  const DiagonalSsm fast{from_values({0.0F}, {1}), from_values({1.0F, 0.0F}, {1, 1, 2}), from_values({0.0F}, {1, 1}),
                         from_values({3.0F}, {1, 1}), Discretization::zoh};
  const auto decayed = vandermonde(fast, 5000).to_vector<float>();
  for (size_t l = 200; l < decayed.size(); ++l) CHECK(decayed[l] == 0.0F);
}

TEST_CASE("a state-space model step by step equals the convolution with its kernel") {
  for_both([](Discretization discretization) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const int64_t length : {1, 2, 3, 7, 64, 1000}) {
        const int64_t channels = 21, pairs = 4;
        const DiagonalSsm ssm = system_of(channels, pairs, discretization, dtype);
        const Tensor u = random_uniform({2, length, channels}, 6, -1, 1, dtype);
        const Tensor D = random_uniform({channels}, 7, -1, 1, dtype);
        const Tensor expected = fft_conv(u, vandermonde(ssm, length), D, ConvMethod::direct);
        const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-5;
        const Tensor modes = discretize(ssm);
        Tensor state = zeros({2, pairs, 2, channels}, dtype);
        CHECK(difference_relative_to_max(ssm_steps(u, modes, D, state)[0], expected, tolerance) == "");
        for (int64_t begin = 0, end; begin < length; begin = end) {  // in parts
          end = std::min(length, begin + 1 + begin % 3 * 50);
          const auto rows = [&](const Tensor& x) {
            return x.view(x.shape().with(1, end - begin), x.strides(), begin * x.strides()[1]);
          };
          const Tensors step = ssm_steps(rows(u), modes, D, state);
          CHECK(difference(step[0], rows(expected), 10 * tolerance) == "");
          state = step[1];
        }
      }
    }
  });
}

TEST_CASE("vandermonde: the number of threads does not change a bit") {
  const int before = num_threads();
  const DiagonalSsm ssm = system_of(9, 5, Discretization::zoh, DType::f32);
  set_num_threads(1);
  const Tensor expected = vandermonde(ssm, 500);
  set_num_threads(3);
  CHECK(same_bits(vandermonde(ssm, 500), expected));
  set_num_threads(before);
}

TEST_CASE("state-space ops say what is wrong with their arguments") {
  const DiagonalSsm good = system_of(3, 4, Discretization::zoh, DType::f32);
  CHECK(op_error([&] { vandermonde(good, -1); }) == "vandermonde: length must be at least 0, got -1");
  DiagonalSsm bad = good;
  bad.log_dt = zeros({3, 1});
  CHECK(op_error([&] { vandermonde(bad, 5); }) == "vandermonde: log_dt must be [C], got f32[3,1]");
  bad = good;
  bad.C = zeros({3, 4});
  CHECK(op_error([&] { vandermonde(bad, 5); }) == "vandermonde: C must be [C,N,2] for log_dt f32[3], got f32[3,4]");
  bad = good;
  bad.A_imag = zeros({3, 5});
  CHECK(op_error([&] { discretize(bad); }) == "ssm_discretize: A_imag must be [C,N] for C f32[3,4,2], got f32[3,5]");
  const Tensor u = zeros({2, 5, 3}), modes = discretize(good), D = zeros({3}), state = zeros({2, 4, 2, 3});
  CHECK(op_error([&] { ssm_steps(zeros({5, 3}), modes, D, state); }) == "ssm_steps: u must be [B,T,C], got f32[5,3]");
  CHECK(op_error([&] {
          ssm_steps(u, zeros({4, 4, 5}), D, state);
        }) == "ssm_steps: modes must be [4,N,C], C = last axis of u f32[2,5,3], got f32[4,4,5]");
  CHECK(op_error([&] { ssm_steps(u, modes, zeros({4}), state); }) ==
        "ssm_steps: D must be [C], C = last axis of u f32[2,5,3], got f32[4]");
  CHECK(op_error([&] {
          ssm_steps(u, modes, D, zeros({2, 4, 3}));
        }) == "ssm_steps: state must be [B,N,2,C] for u f32[2,5,3] and modes f32[4,4,3], got f32[2,4,3]");
}

}  // namespace margay::test
