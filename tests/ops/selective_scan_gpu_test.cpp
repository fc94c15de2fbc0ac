// selective_scan on a GPU against the CPU, over what the op table has no room for: sequences in stretches, several
// blocks of channels and groups of states, bf16. Skipped, and counted as skipped, where there is no GPU.

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/device.h"
#include "ops/selective_scan.h"
#include "ops/view.h"
#include "tests/support/compare.h"
#include "tests/support/selective_scan_case.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

bool no_gpu() { return cuda_device_count() == 0; }

struct Case : SelectiveScanCase {
  bool final = true;  // whether the final states have a cotangent
};

/// Values of bf16, so that no rounding of arguments counts.
SelectiveScan inputs_of(const Case& c, DType dtype, Device device) {
  return inputs_of(c, [&](const Shape& shape, uint64_t seed, double low, double high) {
    return random_uniform(shape, seed, low, high).to(DType::bf16).to(dtype).to(device);
  });
}

/// {y, final states} and all gradients, brought to the CPU in f64.
Tensors run(const Case& c, DType dtype, Device device) {
  SelectiveScan in = inputs_of(c, dtype, device);
  const auto arguments = {&in.u, &in.delta, &in.A, &in.B, &in.C, &in.D, &in.z, &in.delta_bias, &in.initial};
  for (Tensor* tensor : arguments)
    if (tensor->defined()) *tensor = tensor->detach().set_requires_grad();
  const Tensors results = selective_scan(in);
  const auto backward = [&](const Tensor& result, uint64_t seed, bool keep) {
    result.backward(random_uniform(result.shape(), seed).to(DType::bf16).to(dtype).to(device), keep);
  };
  backward(results[0], 50, c.final);
  if (c.final) backward(results[1], 51, false);
  Tensors all{results[0], results[1]};
  for (const Tensor* tensor : arguments)
    if (tensor->defined()) all.push_back(tensor->grad());
  for (Tensor& tensor : all) tensor = tensor.defined() ? tensor.detach().to(Device{}).to(DType::f64) : tensor;
  return all;
}

}  // namespace

TEST_CASE("selective scan on a GPU is the CPU's" * doctest::skip(no_gpu())) {
  for (const Case& c : {Case{1, 1, 3, 4}, Case{2, 17, 70, 5}, Case{1, 33, 65, 16}, Case{2, 20, 5, 37},
                        Case{1, 64, 3, 16}, Case{1, 65, 3, 3}, Case{2, 333, 37, 16}, Case{1, 600, 4, 2, true},
                        Case{1, 200, 3, 20}, Case{1, 130, 66, 18, false, false}, Case{3, 100, 2, 0}}) {
    CAPTURE(c.length);
    CAPTURE(c.E);
    CAPTURE(c.N);
    const Tensors expected = run(c, DType::f64, Device{});
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      CAPTURE(name_of(dtype));
      const double tolerance = dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 2e-5 : 0.02;
      const Tensors got = run(c, dtype, kGpu);
      REQUIRE(got.size() == expected.size());
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        REQUIRE(got[i].defined() == expected[i].defined());
        if (got[i].defined()) CHECK(difference_relative_to_max(got[i], expected[i], tolerance) == "");
      }
    }
  }
}

TEST_CASE("selective scan on a GPU: a token changes nothing before it, not even as NaN" * doctest::skip(no_gpu())) {
  const Case c{1, 150, 5, 6};
  const auto y = [](const SelectiveScan& in) { return selective_scan(in)[0].to(Device{}); };
  const Tensor before = y(inputs_of(c, DType::f32, kGpu));
  for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN()}) {
    for (const int64_t t : {1, 63, 64, 77, 149}) {
      const SelectiveScan in = inputs_of(c, DType::f32, kGpu);
      for (const Tensor& tensor : {in.u, in.delta, in.B, in.C, in.z}) slice(tensor, 1, t, c.length).fill(poison);
      const Tensor after = y(in);
      CHECK(same_bits(slice(after, 1, 0, t), slice(before, 1, 0, t)));
      CHECK_FALSE(same_bits(slice(after, 1, t, t + 1), slice(before, 1, t, t + 1)));
    }
  }
}

TEST_CASE("selective scan on a GPU: gates and steps of any size leave no NaN" * doctest::skip(no_gpu())) {
  SelectiveScan in = inputs_of({1, 70, 3, 2}, DType::f32, kGpu);
  in.initial = {};
  for (const double size : {-std::numeric_limits<double>::infinity(), -1e4, -100.0, 100.0, 1e4}) {
    in.z.fill(std::max(size, -1e5));
    in.delta.fill(size);
    for (const double rate : {-1e30, -1e-30, 0.0}) {
      in.A.fill(rate);
      SelectiveScan leaves = in;
      for (Tensor* tensor : {&leaves.delta, &leaves.z}) *tensor = tensor->detach().set_requires_grad();
      const Tensor y = selective_scan(leaves)[0];
      y.backward(full(y.shape(), 1, DType::f32, kGpu));
      for (const Tensor& result : {y.detach(), leaves.delta.grad(), leaves.z.grad()})
        for (const float value : result.to_vector<float>()) REQUIRE(std::isfinite(value));
    }
  }
}

}  // namespace margay::test
