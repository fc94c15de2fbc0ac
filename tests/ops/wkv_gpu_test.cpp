// wkv on a GPU against the CPU, over what the op table has no room for: sequences in stretches, keys of any size, bf16.
// Skipped, and counted as skipped, where there is no GPU.

#include <doctest/doctest.h>

#include <limits>

#include "engine/device.h"
#include "ops/view.h"
#include "ops/wkv.h"
#include "tests/support/compare.h"

namespace margay::test {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};

bool no_gpu() { return cuda_device_count() == 0; }

struct Case {
  int64_t batch, length, channels;
  double key_size = 2;
  bool initial = false;
};

/// Values of bf16, so that no rounding of arguments counts.
Wkv inputs_of(const Case& c, DType dtype, Device device) {
  const auto random = [&](const Shape& shape, uint64_t seed, double low = -1, double high = 1) {
    return random_uniform(shape, seed, low, high).to(DType::bf16).to(dtype).to(device);
  };
  const Shape rows{c.batch, c.length, c.channels};
  Wkv in{random({c.channels}, 1, -1, -0.001), random({c.channels}, 2), random(rows, 3, -c.key_size, c.key_size),
         random(rows, 4)};
  if (c.initial) in.initial = random({c.batch, 3, c.channels}, 5, 0.5, 1.5);
  return in;
}

/// {y, state} and all gradients, brought to the CPU in f64.
Tensors run(const Case& c, DType dtype, Device device) {
  Wkv in = inputs_of(c, dtype, device);
  for (Tensor* tensor : {&in.w, &in.u, &in.k, &in.v}) *tensor = tensor->detach().set_requires_grad();
  const Tensors results = wkv(in);
  results[0].backward(random_uniform(results[0].shape(), 50).to(DType::bf16).to(dtype).to(device));
  Tensors all{results[0], results[1], in.w.grad(), in.u.grad(), in.k.grad(), in.v.grad()};
  for (Tensor& tensor : all) tensor = tensor.detach().to(Device{}).to(DType::f64);
  return all;
}

}  // namespace

TEST_CASE("wkv on a GPU is the CPU's" * doctest::skip(no_gpu())) {
  for (const Case& c : {Case{1, 1, 3}, Case{2, 7, 300}, Case{1, 64, 3, 2, true}, Case{2, 65, 5, 2, true},
                        Case{3, 333, 20}, Case{1, 700, 2, 2, true}, Case{1, 150, 4, 30}}) {
    CAPTURE(c.length);
    CAPTURE(c.channels);
    const Tensors expected = run(c, DType::f64, Device{});
    for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
      CAPTURE(name_of(dtype));
      const double tolerance = dtype == DType::f64 ? 1e-12 : dtype == DType::f32 ? 3e-5 : 0.02;
      const Tensors got = run(c, dtype, kGpu);
      for (size_t i = 0; i < got.size(); ++i) {
        CAPTURE(i);
        CHECK(difference_relative_to_max(got[i], expected[i], tolerance) == "");
      }
    }
  }
}

TEST_CASE("wkv on a GPU: a token changes nothing before it, not even as NaN" * doctest::skip(no_gpu())) {
  const Case c{1, 150, 5};
  const auto y = [](const Wkv& in) { return wkv(in)[0].to(Device{}); };
  const Tensor before = y(inputs_of(c, DType::f32, kGpu));
  for (const double poison : {3.0, std::numeric_limits<double>::quiet_NaN()}) {
    for (const int64_t t : {1, 7, 63, 64, 77, 149}) {
      const Wkv in = inputs_of(c, DType::f32, kGpu);
      for (const Tensor& tensor : {in.k, in.v}) slice(tensor, 1, t, c.length).fill(poison);
      const Tensor after = y(in);
      CHECK(same_bits(slice(after, 1, 0, t), slice(before, 1, 0, t)));
      CHECK_FALSE(same_bits(slice(after, 1, t, t + 1), slice(before, 1, t, t + 1)));
    }
  }
}

TEST_CASE("wkv on a GPU: keys beyond the range of the exponential are as on the CPU" * doctest::skip(no_gpu())) {
  const Case c{1, 200, 3, 3e4};
  const Tensors expected = run(c, DType::f64, Device{}), got = run(c, DType::f32, kGpu);
  for (size_t i = 0; i < got.size(); ++i) {
    CAPTURE(i);
    CHECK(difference_relative_to_max(got[i], expected[i], 1e-3) == "");
  }
}

}  // namespace margay::test
