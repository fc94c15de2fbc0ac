#include "tasks/train/device_limits.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "engine/autograd.h"
#include "ops/matmul.h"

namespace margay {
namespace {

template <class Work>
double fastest(Device device, const Work& work) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 4; ++i) {  // the first touches fresh memory
    const auto begin = std::chrono::steady_clock::now();
    work();
    backend(device).synchronize();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

}  // namespace

double DeviceLimits::share(double bytes, double flops, double seconds) const {
  return seconds > 0 ? std::max(bytes / bytes_per_second, flops / flops_per_second) / seconds : 0;
}

DeviceLimits measure_limits(Device device, Precision precision) {
  const NoGrad no_grad;
  const PrecisionScope scope(precision);
  // Large enough that starting the work takes no part of its time, on a GPU that does it hundreds of times as fast.
  const bool gpu = device.type == DeviceType::cuda;
  const int64_t elements = int64_t{1} << (gpu ? 28 : 25), size = gpu ? 8192 : 2048;
  DeviceLimits limits;
  {
    const Tensor from = zeros({elements}, DType::f32, device), to = zeros({elements}, DType::f32, device);
    limits.bytes_per_second =
        2.0 * sizeof(float) * static_cast<double>(elements) / fastest(device, [&] { to.copy_from(from); });
  }
  const Tensor a = full({size, size}, 1, DType::f32, device), b = full({size, size}, 1, DType::f32, device);
  const auto n = static_cast<double>(size);
  limits.flops_per_second = 2 * n * n * n / fastest(device, [&] { matmul(a, b); });
  return limits;
}

}  // namespace margay
