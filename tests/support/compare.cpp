#include "tests/support/compare.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "engine/rng.h"

namespace margay::test {
namespace {

std::string first_difference(const Tensor& a, const Tensor& b, double absolute, double relative) {
  if (a.shape() != b.shape()) return fmt::format("shapes {} and {}", to_string(a.shape()), to_string(b.shape()));
  const auto x = a.detach().to(DType::f64).to_vector<double>(), y = b.detach().to(DType::f64).to_vector<double>();
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]))) continue;
    if (!(std::abs(x[i] - y[i]) <= absolute + relative * std::abs(y[i])))
      return fmt::format("element {} of {}: {} and {}", i, to_string(a.shape()), x[i], y[i]);
  }
  return {};
}

}  // namespace

Tensor random_uniform(const Shape& shape, uint64_t seed, double low, double high, DType dtype, Device device) {
  RandomStream random(seed, hash_name("random_uniform"));
  std::vector<double> values(static_cast<size_t>(shape.numel()));
  for (double& value : values) value = low + (high - low) * random.uniform64();
  return from_values(values, shape).to(dtype).to(device);
}

Tensor as_strided_copy(const Tensor& tensor) {
  const int ndim = tensor.ndim();
  if (ndim == 0 || ndim == kMaxDims) return tensor;
  // Memory order: axes reversed, then one more axis of size 2 of which index 1 is used.
  Shape block;
  for (int i = ndim - 1; i >= 0; --i) block.push_back(tensor.shape()[i]);
  block.push_back(2);
  const Shape block_strides = contiguous_strides(block);
  Shape strides = tensor.shape();
  for (int i = 0; i < ndim; ++i) strides[i] = block_strides[ndim - 1 - i];
  const Tensor storage = zeros(block, tensor.dtype(), tensor.device());
  const Tensor view =
      storage.numel() > 0 ? storage.view(tensor.shape(), strides, 1) : storage.view(tensor.shape(), strides);
  view.copy_from(tensor);
  return view.detach();
}

std::string difference(const Tensor& a, const Tensor& b, double tolerance) {
  return first_difference(a, b, tolerance, tolerance);
}

std::string difference_relative_to_max(const Tensor& a, const Tensor& b, double tolerance) {
  double largest = 0;
  for (const double value : b.detach().to(DType::f64).to_vector<double>()) largest = std::max(largest, std::abs(value));
  return first_difference(a, b, tolerance * largest, 0);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  const Tensor x = a.detach().to(Device{}).contiguous(), y = b.detach().to(Device{}).contiguous();
  const size_t bytes = static_cast<size_t>(x.numel()) * size_of(x.dtype());
  return bytes == 0 || std::memcmp(x.region().data, y.region().data, bytes) == 0;
}

}  // namespace margay::test
