// fft_conv against its definition in f64 loops, its gradients included; and what the op table cannot express: large
// sizes, strides of inputs, how much a later token may change, and what is refused.

#include "ops/fft_conv.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "engine/device.h"
#include "engine/parallel.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/naive.h"
#include "tests/support/op_error.h"

namespace margay::test {
namespace {

struct Case {
  int64_t B, L, C, K;
  bool skip = true;
  bool by_taps = false;  // the kernel is a transposed [K,C]
};

struct Inputs {
  Tensor u, kernel, D, dy;
};

// u and dy are slices of wider buffers.
Inputs inputs_of(const Case& c, DType dtype, Device device = {}) {
  const auto slice_of = [&](uint64_t seed) {
    const Tensor wide = random_uniform({c.B, c.L, c.C + 5}, seed, -1, 1, dtype).to(device);
    return wide.view({c.B, c.L, c.C}, wide.strides(), 3);
  };
  const Tensor kernel = random_uniform(c.by_taps ? Shape{c.K, c.C} : Shape{c.C, c.K}, 2, -1, 1, dtype).to(device);
  return {slice_of(1), c.by_taps ? transpose(kernel, 0, 1) : kernel,
          c.skip ? random_uniform({c.C}, 3, -1, 1, dtype).to(device) : Tensor(), slice_of(4)};
}

// y, du, dkernel, dD.
Tensors reference(const Case& c, const Inputs& in) {
  const auto flat = [](const Tensor& x) { return x.detach().contiguous().to_vector<double>(); };
  const auto u = flat(in.u), kernel = flat(in.kernel), dy = flat(in.dy), D = c.skip ? flat(in.D) : u;
  std::vector<double> y(u.size()), du(u.size()), dkernel(kernel.size()), dD(static_cast<size_t>(c.C));
  for (int64_t b = 0; b < c.B; ++b)
    for (int64_t t = 0; t < c.L; ++t)
      for (int64_t channel = 0; channel < c.C; ++channel) {
        const auto at = [&](int64_t time) { return static_cast<size_t>((b * c.L + time) * c.C + channel); };
        const auto here = static_cast<size_t>(channel);
        if (c.skip) {
          y[at(t)] += D[here] * u[at(t)];
          du[at(t)] += D[here] * dy[at(t)];
          dD[here] += u[at(t)] * dy[at(t)];
        }
        for (int64_t w = 0; w < std::min(c.K, t + 1); ++w) {
          const auto tap = static_cast<size_t>(channel * c.K + w);
          y[at(t)] += kernel[tap] * u[at(t - w)];
          du[at(t - w)] += kernel[tap] * dy[at(t)];
          dkernel[tap] += dy[at(t)] * u[at(t - w)];
        }
      }
  Tensors results{from_values(y, in.u.shape()), from_values(du, in.u.shape()), from_values(dkernel, {c.C, c.K})};
  if (c.skip) results.push_back(from_values(dD, {c.C}));
  return results;
}

Tensors run(const Inputs& in, ConvMethod method = ConvMethod::fft) {
  Tensors leaves{in.u.detach(), in.kernel.detach(), in.D.defined() ? in.D.detach() : Tensor()};
  for (Tensor& leaf : leaves)
    if (leaf.defined()) leaf.set_requires_grad();
  const Tensor y = fft_conv(leaves[0], leaves[1], leaves[2], method);
  y.backward(in.dy);
  Tensors results{y.detach()};
  for (const Tensor& leaf : leaves)
    if (leaf.defined()) results.push_back(leaf.grad());
  return results;
}

void check_against_reference(const Case& c) {
  CAPTURE(c.B);
  CAPTURE(c.L);
  CAPTURE(c.C);
  CAPTURE(c.K);
  const Tensors expected = reference(c, inputs_of(c, DType::f64));
  for (const DType dtype : {DType::f64, DType::f32}) {
    for (const ConvMethod method : {ConvMethod::fft, ConvMethod::by_shape}) {
      const Tensors got = run(inputs_of(c, dtype), method);
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        CHECK(difference_relative_to_max(got[i], expected[i], dtype == DType::f64 ? 1e-14 : 1e-6) == "");
      }
    }
  }
}

Tensor rows(const Tensor& x, int64_t begin, int64_t end) {
  return x.view(x.shape().with(1, end - begin), x.strides(), begin * x.strides()[1]);
}

}  // namespace

TEST_CASE("long convolution equals its definition, and so do its gradients") {
  for (const int64_t L : {1, 2, 3, 7, 64, 1000}) check_against_reference({3, L, 5, L});
  for (int64_t L = 4; L < 60; ++L) check_against_reference({2, L, 3, L, L % 2 == 0, L % 3 == 0});  // every kind of size
  for (const int64_t C : {1, 8, 15, 16, 17, 40}) check_against_reference({3, 20, C, 20, true, C % 2 == 0});
  check_against_reference({2, 300, 3, 20});  // filters shorter and longer than the sequences
  check_against_reference({2, 30, 3, 77, true, true});
  check_against_reference({2, 30, 3, 77});
  check_against_reference({75, 12, 3, 12});  // more pairs than chunks
}

TEST_CASE("long convolution: several groups of channels equal the direct sum") {
  const Case c{2, 1100, 90, 1100};
  const Tensors expected = run(inputs_of(c, DType::f64), ConvMethod::direct);
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Tensors got = run(inputs_of(c, dtype), ConvMethod::fft);
    for (size_t i = 0; i < got.size(); ++i)
      CHECK(difference_relative_to_max(got[i], expected[i], dtype == DType::f64 ? 1e-14 : 1e-6) == "");
  }
}

TEST_CASE("long convolution on a GPU is the CPU's" * doctest::skip(cuda_device_count() == 0)) {
  const Case cases[] = {
      {3, 1, 2, 1},                    // the smallest transform
      {5, 7, 9, 7, true, true},        // vectors with few channels
      {3, 40, 17, 40, false},          // shared memory: each number of passes
      {2, 130, 3, 130},                //
      {2, 300, 8, 200, true, true},    //
      {1, 900, 5, 900},                //
      {2, 1500, 3, 1500},              // passes over global memory: f32 one of radix 2, f64 of 4
      {2, 3000, 2, 5000, true, true},  // of 4 and 8
      {1, 9000, 9, 7000},              // of 8 and 16
      {1, 33000, 1, 33000, false},     // two of them
      {180, 900, 17, 900},             // several rounds of sequences
  };
  for (const Case& c : cases) {
    CAPTURE(c.L);
    CAPTURE(c.C);
    const Tensors expected = run(inputs_of(c, DType::f64));
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      if (c.B > 100 && dtype != DType::f32) continue;  // takes long on the emulated GPU
      Inputs in = inputs_of(c, dtype == DType::bf16 ? DType::f32 : dtype, Device{DeviceType::cuda});
      for (Tensor* x : {&in.u, &in.kernel, &in.D, &in.dy})
        if (x->defined()) *x = x->to(dtype);
      const Tensors got = run(in);
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        const double tolerance = dtype == DType::f64 ? 1e-14 : dtype == DType::f32 ? 1e-6 : 1e-2;
        CHECK(difference_relative_to_max(got[i].to(Device{}).to(DType::f64), expected[i], tolerance) == "");
      }
    }
  }
}

TEST_CASE("long convolution: a later token changes little more than nothing before it") {
  const Case c{3, 700, 20, 700};
  const Tensor before = run(inputs_of(c, DType::f32))[0];
  for (const int64_t t : {1, 350, 699}) {
    const Inputs in = inputs_of(c, DType::f32);
    rows(in.u, t, c.L).fill(1);
    const Tensor after = run(in)[0];
    double largest = 0;
    for (const float value : after.to_vector<float>()) largest = std::max(largest, std::fabs(double{value}));
    const Tensor difference_before = rows(after, 0, t).contiguous();
    const auto a = difference_before.to_vector<float>(), b = rows(before, 0, t).contiguous().to_vector<float>();
    double change = 0;
    for (size_t i = 0; i < a.size(); ++i) change = std::max(change, std::fabs(double{a[i]} - double{b[i]}));
    CHECK(change < 2e-6 * largest);
  }
  // Sequences that share a transform do not mix beyond rounding either.
  const Inputs in = inputs_of(c, DType::f64);
  select(in.u, 0, 1).fill(1e3);
  CHECK(difference_relative_to_max(select(run(in)[0], 0, 0), select(run(inputs_of(c, DType::f64))[0], 0, 0), 1e-12) ==
        "");
}

TEST_CASE("long convolution of short sequences by shape is exactly causal") {
  const Case c{2, 40, 20, 40};
  const Tensor before = run(inputs_of(c, DType::f32), ConvMethod::by_shape)[0];
  const Inputs in = inputs_of(c, DType::f32);
  rows(in.u, 20, c.L).fill(3);
  CHECK(same_bits(rows(run(in, ConvMethod::by_shape)[0], 0, 20), rows(before, 0, 20)));
}

TEST_CASE("long convolution: only the gradients that are wanted") {
  const Case c{3, 50, 5, 50};
  for (int device = 0; device < 1 + std::min(1, cuda_device_count()); ++device) {
    const Inputs in = inputs_of(c, DType::f64, device > 0 ? Device{DeviceType::cuda} : Device{});
    const Tensors all = run(in);
    for (size_t wanted = 0; wanted < 3; ++wanted) {
      Tensors leaves{in.u.detach(), in.kernel.detach(), in.D.detach()};
      leaves[wanted].set_requires_grad();
      fft_conv(leaves[0], leaves[1], leaves[2], ConvMethod::fft).backward(in.dy);
      CHECK(difference(leaves[wanted].grad().to(Device{}), all[wanted + 1].to(Device{}), 1e-14) == "");
    }
  }
}

TEST_CASE("long convolution: the number of threads does not change a bit") {
  const int before = num_threads();
  for (const Case& c : {Case{9, 200, 40, 200}, Case{70, 90, 5, 90}, Case{2, 1100, 90, 1100}}) {
    set_num_threads(1);
    const Tensors expected = run(inputs_of(c, DType::f32));
    for (const int threads : {2, 3}) {
      set_num_threads(threads);
      const Tensors got = run(inputs_of(c, DType::f32));
      for (size_t i = 0; i < got.size(); ++i) CHECK(same_bits(got[i], expected[i]));
    }
  }
  set_num_threads(before);
}

TEST_CASE("long convolution says what is wrong with its arguments") {
  const auto t = [](const Shape& shape, DType dtype = DType::f32) { return zeros(shape, dtype); };
  const Tensor u = t({2, 5, 6});
  CHECK(op_error([&] { fft_conv({}, t({6, 5})); }) == "fft_conv: u must be of a float dtype, got none");
  CHECK(op_error([&] { fft_conv(t({5, 6}), t({6, 5})); }) == "fft_conv: u must be [B,L,C], got f32[5,6]");
  const std::string kernel = "fft_conv: kernel must be [C,K], K > 0, C = last axis of u f32[2,5,6], got ";
  CHECK(op_error([&] { fft_conv(u, t({5, 6})); }) == kernel + "f32[5,6]");
  CHECK(op_error([&] { fft_conv(u, t({6})); }) == kernel + "f32[6]");
  CHECK(op_error([&] { fft_conv(u, t({6, 0})); }) == kernel + "f32[6,0]");
  CHECK(op_error([&] { fft_conv(u, t({6, 5}, DType::f64)); }) != "");
  CHECK(op_error([&] {
          fft_conv(u, t({6, 5}), t({5}));
        }) == "fft_conv: D must be [C], C = last axis of u f32[2,5,6], got f32[5]");
}

}  // namespace margay::test
