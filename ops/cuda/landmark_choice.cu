#include "ops/landmark_choice.h"

#include "engine/cuda/launch.cuh"

namespace margay::kernels {
namespace {

/// The largest values met so far, largest first, and where they stood; of equals the one met first, and a NaN counts as
/// larger than every number.
template <class A>
struct Largest {
  A* values;
  int32_t* indices;
  int64_t k, kept = 0;

  __device__ static bool greater(A a, A b) { return a > b || (a != a && b == b); }
  __device__ void add(A value, int32_t index) {
    if (kept == k && !greater(value, values[k - 1])) return;
    int64_t place = kept < k ? kept++ : k - 1;
    for (; place > 0 && greater(value, values[place - 1]); --place) {
      values[place] = values[place - 1];
      indices[place] = indices[place - 1];
    }
    values[place] = value;
    indices[place] = index;
  }
  /// Puts the indices in ascending order.
  __device__ void sort() {
    for (int64_t i = 1; i < kept; ++i) {
      const int32_t own = indices[i];
      int64_t place = i;
      for (; place > 0 && indices[place - 1] > own; --place) indices[place] = indices[place - 1];
      indices[place] = own;
    }
  }
};

// A warp per query: each lane has a landmark at a time, lane 0 keeps the list.
template <class T>
__global__ void __launch_bounds__(cuda::kThreads) choose(LandmarkChoice<T> a) {
  using A = acc_t<T>;
  constexpr int64_t warps = cuda::kThreads / cuda::kWarp;
  __shared__ A products[warps][cuda::kWarp];
  const LandmarkShape& s = a.shape;
  const int64_t warp = threadIdx.x / cuda::kWarp, lane = threadIdx.x % cuda::kWarp;
  for (int64_t i = blockIdx.x * warps + warp; i < s.B * s.H * s.Lq; i += gridDim.x * warps) {
    const int64_t query = i % s.Lq, head = i / s.Lq % s.H, batch = i / s.Lq / s.H;
    const T* const q = a.q + batch * a.q_strides.batch + head * a.q_strides.head + query * a.q_strides.row;
    const T* const landmarks = a.landmarks + batch * a.landmark_strides.batch + head * a.landmark_strides.head;
    const int64_t before = (s.Lk - s.Lq + query) / s.W;
    Largest<A> largest{a.workspace + i * a.count, a.blocks + i * a.count, a.count};
    for (int64_t m = 0; m < before; m += cuda::kWarp) {
      const T* const landmark = landmarks + (m + lane) * a.landmark_strides.row;
      A sum(0);
      if (m + lane < before)
        for (int64_t d = 0; d < s.dh; ++d) sum += A(q[d]) * A(landmark[d]);
      products[warp][lane] = sum;
      __syncwarp();
      if (lane == 0)
        for (int64_t n = 0; n < min(int64_t{cuda::kWarp}, before - m); ++n)
          largest.add(products[warp][n], static_cast<int32_t>(m + n));
      __syncwarp();
    }
    if (lane > 0) continue;
    largest.sort();
    for (int64_t k = largest.kept; k < a.count; ++k) largest.indices[k] = -1;
  }
}

}  // namespace

template <class T>
void run(Cuda cuda, const LandmarkChoice<T>& a) {
  if (a.count > 0) cuda::launch_elements(cuda, a.shape.B * a.shape.H * a.shape.Lq * cuda::kWarp, choose<T>, a);
}

template void run(Cuda, const LandmarkChoice<float>&);
template void run(Cuda, const LandmarkChoice<double>&);
template void run(Cuda, const LandmarkChoice<bf16>&);

}  // namespace margay::kernels
