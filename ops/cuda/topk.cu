#include "ops/topk.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

/// Whether a comes before b in descending order: a NaN is larger than every number and equal to a NaN.
template <class A>
__device__ bool greater(A a, A b) {
  return a > b || (a != a && b == b);
}

static_assert(TopKFwd<float>::kMaxK == cuda::kWarp, "a lane keeps one of the largest");

// A warp per row: lane i keeps the i-th largest element so far. Of equals the one met first stands first.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) largest(TopKFwd<T> a) {
  using A = acc_t<T>;
  constexpr unsigned all = 0xffffffffu;
  constexpr int64_t warps = cuda::kThreads / cuda::kWarp;
  const int lane = threadIdx.x % cuda::kWarp, last = static_cast<int>(a.k) - 1;
  for (int64_t row = blockIdx.x * warps + threadIdx.x / cuda::kWarp; row < a.rows; row += gridDim.x * warps) {
    const T* const x = a.x + row * a.N;
    A own(0);
    int32_t index = -1;  // none
    for (int64_t begin = 0; begin < a.N; begin += cuda::kWarp) {
      const int64_t count = min(int64_t{cuda::kWarp}, a.N - begin);
      const A loaded = lane < count ? A(x[begin + lane]) : A(0);
      for (int64_t i = 0; i < count; ++i) {
        const A candidate = __shfl_sync(all, loaded, static_cast<int>(i));
        const A worst = __shfl_sync(all, own, last);
        const int32_t kept = __shfl_sync(all, index, last);
        if (kept >= 0 && !greater(candidate, worst)) continue;  // the same for all lanes
        const int above = lane > 0 ? lane - 1 : 0;
        const A above_value = __shfl_sync(all, own, above);
        const int32_t above_index = __shfl_sync(all, index, above);
        const bool moves = index < 0 || greater(candidate, own);
        const bool above_moves = lane > 0 && (above_index < 0 || greater(candidate, above_value));
        if (above_moves) own = above_value, index = above_index;
        if (moves && !above_moves) own = candidate, index = static_cast<int32_t>(begin + i);
      }
    }
    if (lane < a.k) {
      a.values[row * a.k + lane] = T(own);
      a.indices[row * a.k + lane] = index;
    }
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const TopKFwd<T>& a) {
  if (a.k > 0) cuda::launch_elements(cuda, a.rows * cuda::kWarp, largest<T>, a);
}

template void run(Cuda, const TopKFwd<float>&);
template void run(Cuda, const TopKFwd<double>&);
template void run(Cuda, const TopKFwd<bf16>&);

}  // namespace margay::kernels
